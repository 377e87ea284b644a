"""Tests what only llama.cpp's own server does."""
