"""Rewrites a text by patterns, one after the other."""

import re

Rewrites = tuple[tuple[re.Pattern[str], str], ...]
"""Patterns, each with what stands in its place."""


def rewrites(*pairs: tuple[str, str]) -> Rewrites:
    """Compile patterns, each with its replacement."""
    return tuple((re.compile(pattern), to) for pattern, to in pairs)


def rewritten(text: str, by: Rewrites) -> str:
    """Return the text after all of the rewrites."""
    for pattern, to in by:
        text = pattern.sub(to, text)
    return text
