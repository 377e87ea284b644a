"""Measures motab, the plain student and the published loop on servers that a user runs."""
