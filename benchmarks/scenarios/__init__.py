"""Holds the measurements, one question per file."""
