"""Makes vLLM's CPU build take Model Runner V2; its folder stands in PYTHONPATH."""
