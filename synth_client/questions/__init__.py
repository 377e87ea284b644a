"""Reads what is asked: files, datasets and the units made from their rows."""
