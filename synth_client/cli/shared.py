"""Shares options, their help and their checks among the commands."""

import logging
from collections.abc import Iterable
from typing import Final

import httpx
import typer
from rich.console import Console
from rich.logging import RichHandler

from synth_client.prices import PRICED
from synth_client.training_data.filters import Kept, known_filters

RULE_HELP: Final = "How answers are judged: math, exact, choice, number or MODULE:FUNCTION."


FILTER_HELP: Final = f"One of {known_filters()}. Repeat it; the order counts."


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
        raise typer.BadParameter(f"--price {text}: wanted is one of {', '.join(PRICED)}=PRICE")
    return kind, price


def check_url(text: str) -> str:
    """The value of --base-url, where it is one."""
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise typer.BadParameter(f"--base-url {text}: {error}") from error
    if url.scheme not in {"http", "https"} or not url.host:
        raise typer.BadParameter(f"--base-url {text}: wanted is http://HOST:PORT/v1")
    return text


def log_console() -> Console:
    """The log's own, so that its lines and the live panel do not overwrite each other."""
    handlers = logging.getLogger().handlers
    shared = (handler.console for handler in handlers if isinstance(handler, RichHandler))
    return next(shared, Console(stderr=True))


def say_dropped(kept: Kept) -> None:
    """How many records each filter dropped."""
    for name, number in kept.dropped.items():
        typer.echo(f"{number:,} dropped by {name}")
