"""Tests pairs whose steps a scorer of the user's own gives values."""
