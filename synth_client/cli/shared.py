"""Checks what several commands are given and prints what several commands print."""

import logging
from collections.abc import Iterable
from pathlib import Path

import httpx
import typer
from rich.console import Console
from rich.logging import RichHandler

from proxy.near_names import did_you_mean
from synth_client.asking.servers import Servers
from synth_client.prices import PRICED
from synth_client.training_data.filters import Kept


def parse_prices(texts: Iterable[str] | None) -> dict[str, float]:
    """The values of `--price KIND=PRICE`; raises `BadParameter` saying what would be right."""
    return dict(_parse(text) for text in texts or ())


def _parse(text: str) -> tuple[str, float]:
    kind, _, value = text.partition("=")
    try:
        price = float(value)
    except ValueError:
        price = -1.0
    if kind not in PRICED or not 0 <= price < float("inf"):
        message = f"--price {text}: write one of {', '.join(PRICED)}=PRICE"
        raise typer.BadParameter(message + did_you_mean(kind, PRICED))
    return kind, price


def servers_of(
    base_urls: Iterable[str], api_key: str | None, concurrency: int, min_concurrency: int = 1
) -> Servers:
    """Return the servers that the options describe; raises `BadParameter` for wrong values."""
    if min_concurrency > concurrency:
        raise typer.BadParameter("--min-concurrency is larger than --concurrency")
    return Servers(
        base_urls=tuple(_checked_url(text) for text in base_urls),
        api_key=api_key,
        concurrency=concurrency,
        min_concurrency=min_concurrency,
    )


def _checked_url(text: str) -> str:
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise typer.BadParameter(f"--base-url {text}: {error}") from error
    if url.scheme not in {"http", "https"} or not url.host:
        raise typer.BadParameter(f"--base-url {text}: write http://HOST:PORT/v1")
    return text


def check_output(output: Path, source: Path, name: str = "--output") -> None:
    """Raise `BadParameter` where the output would overwrite the input."""
    if output.exists() and source.exists() and output.samefile(source):
        raise typer.BadParameter(f"{name} is the input itself")


def log_console() -> Console:
    """The log's own console, so that its lines and the live panel do not overwrite each other."""
    handlers = logging.getLogger().handlers
    shared = (handler.console for handler in handlers if isinstance(handler, RichHandler))
    return next(shared, Console(stderr=True))


def say_dropped(kept: Kept) -> None:
    """Print how many records each filter dropped."""
    for name, number in kept.dropped.items():
        typer.echo(f"{number:,} dropped by {name}")


def say_failed(num_failed: int, file: Path, *, err: bool = False) -> None:
    """Print where the failures are, if there are any."""
    if num_failed:
        typer.echo(
            f"{num_failed:,} failed: {file} says why, and the same command tries them again",
            err=err,
        )
