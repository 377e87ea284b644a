"""Hides the configuration's secrets in the texts that leave the process: errors and log lines.

An upstream may quote the key that it was sent, or a gateway the headers, in words that our clients
and logs are shown. So every error hides the secrets of the configurations that this process has
read, and of its environment, in its message; the log's format does so in its lines.
"""

import json
import os
import re
from base64 import b64encode
from collections.abc import Iterable, Iterator
from typing import Final
from urllib.parse import parse_qsl, quote, unquote, urlsplit

HIDDEN: Final = "***"
_EXCERPT: Final = 500
# A shorter key is a placeholder such as "none" or "EMPTY", and would hide ordinary words.
_MIN_LENGTH: Final = 8
# Whoever quotes a key may cut it off; half of it is enough to know it by.
_REST: Final = r"[\w.~+/=-]*"
_NAMES: Final = re.compile(r"(?:KEY|TOKEN|SECRET|PASSWORD|CREDENTIALS?)(?:_\d+)?$", re.IGNORECASE)
# A part of a path with letters and digits, as long as keys are.
_PATH_KEY: Final = re.compile(r"(?=.*\d)(?=.*[A-Za-z])[^/]{16,}")

_hidden: set[str] = set()
_pattern: re.Pattern[str] | None = None


def hide(secrets: Iterable[str]) -> None:
    """Hide these, too, from now on, in whatever spelling. Those shorter than 8 characters stay."""
    global _pattern  # noqa: PLW0603 - the process has one log and one tree of errors
    found = {spelt for secret in secrets if len(secret) >= _MIN_LENGTH for spelt in _spelt(secret)}
    if found <= _hidden:
        return
    _hidden.update(found)
    longest_first = sorted(_hidden, key=lambda secret: (-len(secret), secret))
    wholes, halves = map(re.escape, longest_first), map(_first_half, longest_first)
    _pattern = re.compile("|".join((*wholes, *halves)))


def masked(text: str) -> str:
    """Return `text` with `***` in place of every secret, and of the first half of one or more."""
    return text if _pattern is None else _pattern.sub(HIDDEN, text)


def secrets_of_url(url: str) -> Iterator[str]:
    """Yield a URL's user and password: as they are sent, and each for itself."""
    userinfo = urlsplit(url).netloc.rpartition("@")[0]
    if not userinfo:
        return
    user, _, password = map(unquote, userinfo.partition(":"))
    yield from (user, password, f"{userinfo}@", f"{user}:{password}@")
    yield b64encode(f"{user}:{password}".encode()).decode()


def keys_in_url(url: str) -> Iterator[str]:
    """Yield what may be a key in a URL's query or path, as some gateways have it."""
    parts = urlsplit(url)
    yield from (value for _, value in parse_qsl(parts.query))
    yield from filter(_PATH_KEY.fullmatch, parts.path.split("/"))


def excerpt(text: str) -> str:
    """Return the beginning of what a server says, for a message; no key in it is cut in two."""
    return masked(text)[:_EXCERPT]


def without_userinfo(url: str) -> str:
    """Return a URL as it may be shown: without user and password, and with its keys hidden."""
    parts = urlsplit(url)
    return masked(parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl())


def secrets_of_environment() -> Iterator[str]:
    """Yield the values of the variables that hold keys by their names, such as `OPENAI_API_KEY`."""
    return (value for name, value in os.environ.items() if _NAMES.search(name))


def _spelt(secret: str) -> set[str]:
    """A secret as it is, in a URL, in JSON and in Python's `repr`."""
    return {secret, quote(secret, safe=""), json.dumps(secret)[1:-1], repr(secret)[1:-1]}


def _first_half(secret: str) -> str:
    return re.escape(secret[: max(_MIN_LENGTH, (len(secret) + 1) // 2)]) + _REST
