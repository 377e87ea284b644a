"""Unit tests of configuration, container and workers' seats."""
