"""Reads the page's files once, at the start, with the headers that they are served with."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Final

from trajectory_records.viewer.sources import (
    legend_markup,
    viewer_markup,
    viewer_script,
    viewer_style,
)

SCRIPTS: Final = (
    *("app.js", "stream.js", "options.js", "rethreshold.js", "watch.js", "fleet.js", "runs.js"),
)
"""In the order in which the browser runs them, after the viewer's."""
_TYPES: Final = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
# Nothing but the page's own files runs, and nothing is asked but this server.
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS: Final[Mapping[str, str]] = {
    "content-security-policy": _POLICY,
    "cache-control": "no-cache",
    "cross-origin-opener-policy": "same-origin",
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
}
_ASSETS: Final = files("proxy.page") / "assets"
_INDEX: Final = "index.html"


@dataclass(frozen=True, slots=True)
class PageFile:
    """The content of one file and its media type."""

    content: bytes
    media_type: str


def page_files() -> dict[str, PageFile]:
    """Return the files of the page by their path on the server."""
    tags = "\n".join(f'<script src="page/{name}" defer></script>' for name in SCRIPTS)
    index = _asset(_INDEX)
    parts = {"viewer": viewer_markup(), "legend": legend_markup(), "scripts": tags}
    for name, markup in parts.items():
        index = index.replace(f"{{{{{name}}}}}", markup)
    contents = {
        "viewer.js": viewer_script(),
        "viewer.css": viewer_style(),
        **{name: _asset(name) for name in (*SCRIPTS, "page.css", "icon.svg")},
    }
    return {
        "/": _file(_INDEX, index),
        **{f"/page/{name}": _file(name, content) for name, content in contents.items()},
    }


def _file(name: str, content: str) -> PageFile:
    return PageFile(content.encode(), _TYPES[name.rpartition(".")[2]])


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")
