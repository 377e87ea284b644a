"""Compares methods on any pair of models, from a plan to a page with the table."""
