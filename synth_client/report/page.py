"""Builds pages that open offline: one HTML file with its scripts, its data and Plotly inside.

A page's Content-Security-Policy forbids the network and every script except the page's own, which
it lists by hash. Data is embedded as gzip in base64, so no text of a record is ever read as HTML,
and Plotly's script for bars and lines (`assets/plotly-basic.min.js.gz`) takes 0.5 MB.
"""

import gzip
import hashlib
from base64 import b64encode
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import orjson
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from synth_client.errors import ClientError
from synth_client.files.atomic import AtomicFile, output_errors
from trajectory_records.viewer.palette import PALETTE
from trajectory_records.viewer.sources import viewer_style

if TYPE_CHECKING:
    from synth_client.report.plots import PlotGroup

MAX_DATA_BYTES: Final = 200 * 2**20
"""The limit on a page's embedded data; browsers become slow or give up far beyond it."""
_ASSETS: Final = files("synth_client.report") / "assets"


class PageError(ClientError):
    """The page cannot be made, or would be too large to open."""


@dataclass(frozen=True, slots=True)
class Block:
    """A page's data under an id; `content` is gzip in base64."""

    name: str
    content: str


def block(name: str, data: Any) -> Block:  # noqa: ANN401 - anything that JSON can hold
    """Pack data as JSON for a page."""
    return Block(name, _packed(orjson.dumps(data)))


def page(
    template: str,
    *,
    scripts: Sequence[str],
    groups: "Sequence[PlotGroup]",
    blocks: Sequence[Block] = (),
    **context: Any,  # noqa: ANN401 - the template's variables
) -> Iterator[str]:
    """Yield the page in pieces. `template` is a file in `assets`.

    Raises `PageError` if the page would be too large.
    """
    plots = {plot.name: plot.to_json() for group in groups for plot in group.plots}
    palette = {name: [one.light, one.dark] for name, one in PALETTE.items()}
    data = [
        Block("plotly", _base64(_plotly())),
        block("palette", palette),
        block("plots", plots),
        *blocks,
    ]
    size = sum(len(one.content) for one in data)
    if size > MAX_DATA_BYTES:
        raise PageError(
            f"the page would hold {size / 2**20:,.0f} MB, but only {MAX_DATA_BYTES >> 20} MB open"
            " well: show fewer trajectories (--max-trajectories)"
        )
    sources = (*(script.encode() for script in scripts), gzip.decompress(_plotly()))
    hashes = " ".join(f"'sha256-{_digest(source)}'" for source in sources)
    environment = Environment(
        loader=PackageLoader("synth_client.report", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).generate(
        policy=f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline';"
        " base-uri 'none'; form-action 'none'",
        style=Markup(viewer_style() + asset("page.css")),  # noqa: S704 - our own files
        scripts=[Markup(source) for source in scripts],  # noqa: S704 - our own files
        groups=groups,
        blocks=data,
        **context,
    )


def write_page(pieces: Iterable[str], path: Path) -> None:
    """Write a page to `path`, and create its folder if needed.

    Raises `OutputError` if the page cannot be written; `path` then stays as it was.
    """
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with AtomicFile(path) as whole:
            whole.file.writelines(piece.encode() for piece in pieces)
            whole.publish()


def asset(name: str) -> str:
    """Return a file of `assets`."""
    return (_ASSETS / name).read_text(encoding="utf-8")


def require_plotly() -> None:
    """Raise `PageError` if Plotly is not installed, as in the proxy's image."""
    if find_spec("plotly") is None:
        raise PageError("pages need plotly: pip install 'motab[report]'")


@cache
def _plotly() -> bytes:
    """Plotly's script, as gzip."""
    return (_ASSETS / "plotly-basic.min.js.gz").read_bytes()


def _packed(content: bytes) -> str:
    return _base64(gzip.compress(content, 6, mtime=0))


def _digest(source: bytes) -> str:
    return _base64(hashlib.sha256(source).digest())


def _base64(content: bytes) -> str:
    return b64encode(content).decode("ascii")
