"""Reads the usage that OpenAI-style answers end with."""

from typing import Any


def cached_tokens(reply: dict[str, Any]) -> int | None:
    """The number of prompt tokens that came from the cache; None if the server does not report it.

    vLLM reports it only with `--enable-prompt-tokens-details`.
    """
    details = (reply.get("usage") or {}).get("prompt_tokens_details") or {}
    cached = details.get("cached_tokens")
    return None if cached is None else int(cached)
