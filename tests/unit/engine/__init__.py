"""Unit tests of `proxy.engine`."""
