"""Reads the usage that OpenAI-style answers end with."""

from typing import Any


def cached_tokens(reply: dict[str, Any]) -> int | None:
    """The number of prompt tokens that came from the cache; None where the server does not say.

    vLLM says it with `--enable-prompt-tokens-details` only.
    """
    details = (reply.get("usage") or {}).get("prompt_tokens_details") or {}
    cached = details.get("cached_tokens")
    return None if cached is None else int(cached)
