"""Reads the numbers of an answer, each one whole, and compares them."""
