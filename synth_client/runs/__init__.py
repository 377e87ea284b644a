"""Carries a run from its start to its final files."""
