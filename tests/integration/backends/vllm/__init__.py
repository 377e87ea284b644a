"""Tests what only vLLM does."""
