"""Tests what only servers with OpenAI's completions do, and scoring by echo."""
