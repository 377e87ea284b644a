"""Runs work that can be stopped and resumed."""

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from synth_client.errors import first_of

T = TypeVar("T")


def run_loop(main: Coroutine[Any, Any, T]) -> T:
    """Run it in the fastest event loop that there is here."""
    if sys.platform == "win32":
        return asyncio.run(main)
    import uvloop  # noqa: PLC0415 - not on every platform

    return uvloop.run(main)


async def beside(
    helpers: list[Awaitable[None]], main: Awaitable[None], stop: Callable[[], None]
) -> None:
    """Run `main` with helpers that end after `stop`. The first error of any ends all."""
    try:
        async with asyncio.TaskGroup() as group:
            for helper in helpers:
                group.create_task(_awaited(helper))
            try:
                await main
            finally:
                stop()
    except BaseExceptionGroup as failures:
        raise first_of(failures) from failures


async def _awaited(work: Awaitable[None]) -> None:
    await work


@contextmanager
def signals(handle: Callable[[], None]) -> Iterator[None]:
    """While it lasts, SIGINT and SIGTERM call `handle`."""
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM)
    for number in numbers:
        loop.add_signal_handler(number, handle)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
