"""Unit tests of requests and options."""
