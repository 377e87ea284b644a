"""Speaks the servers' wire formats, one server per file."""
