"""Serves GGUF files with a llama.cpp process of our own."""
