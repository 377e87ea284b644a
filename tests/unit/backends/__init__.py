"""Unit tests of `proxy.backends`."""
