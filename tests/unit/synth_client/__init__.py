"""Unit tests of `synth_client` without its pages."""
