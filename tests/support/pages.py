"""Reads the pages of `synth_client.report.page` back as their scripts do."""

import gzip
import re
from base64 import b64decode
from typing import Any

import orjson

_BLOCK = re.compile(
    r'<script type="application/gzip" id="data-([\w-]+)">([A-Za-z0-9+/=]*)</script>'
)


def data_of(html: str) -> dict[str, Any]:
    """The data of a page by name; Plotly's script is text."""
    found: dict[str, Any] = {}
    for name, content in _BLOCK.findall(html):
        text = gzip.decompress(b64decode(content))
        found[name] = text.decode() if name == "plotly" else orjson.loads(text)
    return found


def without_data(html: str) -> str:
    """The page as a browser without scripts would read it."""
    return _BLOCK.sub("", html)
