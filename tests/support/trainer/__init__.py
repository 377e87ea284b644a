"""Helpers of the tests of `trainer`."""
