"""Unit tests of `proxy.core`, golden numbers included."""
