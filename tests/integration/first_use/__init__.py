"""Tests `motab init`, `motab doctor` and the built wheel, which a stranger meets first."""
