"""Helpers of the tests of `proxy`."""
