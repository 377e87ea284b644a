"""Compares the paper's methods on a pair of tiny models."""
