"""Synthesis on a real, local Ray."""
