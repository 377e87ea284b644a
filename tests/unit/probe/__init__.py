"""Unit tests of `proxy.probe`."""
