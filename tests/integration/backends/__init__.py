"""The real parsers on bytes recorded from real servers."""
