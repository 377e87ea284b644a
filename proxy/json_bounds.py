"""Bounds JSON before it is parsed, because the values of a small body can take much memory."""

import json
import re
from collections.abc import Iterator

MAX_VALUES = 2**19
"""The values of a body: 4 MB of token ids have 600,000 of them at most."""
MAX_NESTED = 2**16
"""The objects, lists and keys of a body, of which each takes some 100 bytes."""
MAX_DEPTH = 200
"""The levels of lists and objects in each other; the fastest parsers end there."""

# A string that is never closed ends with the text, so that it is read only once.
_STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_INT64 = 2**63


def fault_of_size(body: bytes) -> str | None:
    """Return why a body has too much in it; None if it may be parsed."""
    if not _fault(body.count(b","), sum(map(body.count, (b"[", b"{", b":")))):
        return None  # nearly always
    text = body.decode(json.detect_encoding(body), "replace")
    bare = _STRING.sub("", text)  # commas in strings are text
    return _fault(bare.count(","), sum(map(bare.count, "[{:")))


def _fault(num_values: int, num_nested: int) -> str | None:
    if num_values > MAX_VALUES:
        return f"it has more than {MAX_VALUES} values"
    if num_nested > MAX_NESTED:
        return f"it has more than {MAX_NESTED} objects, lists and keys"
    return None


def misfit_of(value: object) -> tuple[int | str, ...] | None:
    """Return the place of the first part of a parsed value that JSON for servers cannot hold.

    Such a part is half a surrogate pair, an integer beyond 64 bits, or nested too deeply. None if
    there is none. Each part is looked at once.
    """
    return _misfit(value, MAX_DEPTH)


def _misfit(value: object, levels: int) -> tuple[int | str, ...] | None:
    if not isinstance(value, dict | list):
        return None if _fits(value) else ()
    if not levels or (isinstance(value, dict) and not all(map(_fits, value))):
        return ()
    for key, item in _items(value):
        if (found := _misfit(item, levels - 1)) is not None:
            return (key, *found)
    return None


def _items(value: dict[str, object] | list[object]) -> Iterator[tuple[int | str, object]]:
    yield from value.items() if isinstance(value, dict) else enumerate(value)


def _fits(value: object) -> bool:
    """Return whether JSON for servers can hold a value that has no parts."""
    if isinstance(value, int):
        return -_INT64 <= value < 2 * _INT64
    try:
        return not isinstance(value, str) or value.isascii() or bool(value.encode())
    except UnicodeEncodeError:
        return False
