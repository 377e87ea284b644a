"""Matches text with tokens: alignment, spelling, templates, tokenizers."""
