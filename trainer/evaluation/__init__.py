"""Measures a served model on benchmarks."""
