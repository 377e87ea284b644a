"""Speaks the wire formats, one server a file."""
