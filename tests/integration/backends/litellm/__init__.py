"""Tests hosted chat models, spoken to through litellm."""
