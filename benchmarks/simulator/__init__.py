"""Simulates servers with SGLang's and vLLM's wire formats, with real timing and no model."""
