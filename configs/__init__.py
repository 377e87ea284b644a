"""Configurations that come with motab: the demo's, and examples to copy."""
