"""Holds the scripts that run in other Python environments; they import nothing of ours."""
