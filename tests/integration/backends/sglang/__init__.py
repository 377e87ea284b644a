"""Tests what only SGLang does."""
