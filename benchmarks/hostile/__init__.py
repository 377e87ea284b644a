"""Attacks a running proxy and measures what that costs it: `python -m benchmarks.hostile`."""
