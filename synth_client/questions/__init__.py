"""Reads the questions: files, datasets and the units made from their rows."""
