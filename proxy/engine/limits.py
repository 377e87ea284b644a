"""How much may be under way at once: at each upstream, and in the whole server."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from proxy.backends.base import Backend
from proxy.errors import Draining, OverCapacity, RequestError


@dataclass(slots=True)
class Upstream:
    """A server and its limit. Writing and scoring are counted apart, each up to `max_concurrent`,
    so that long drafts cannot keep the short scoring calls waiting; waiters are served in order.
    """

    name: str
    backend: Backend
    max_concurrent: int
    writing: asyncio.Semaphore = field(init=False)
    scoring: asyncio.Semaphore = field(init=False)

    def __post_init__(self) -> None:
        self.writing = asyncio.Semaphore(self.max_concurrent)
        self.scoring = asyncio.Semaphore(self.max_concurrent)


class Admission:
    """Counts the trajectories under way; turns away what is too much, and all while draining."""

    def __init__(self, max_concurrent: int) -> None:
        self._max_concurrent = max_concurrent
        self.num_active = 0
        self.draining = False

    @contextmanager
    def admit(self, num_trajectories: int) -> Iterator[None]:
        """Raises `OverCapacity`, `Draining`, or `RequestError` where it could never fit."""
        if self.draining:
            raise Draining("the server is shutting down")
        if num_trajectories > self._max_concurrent:
            message = f"n = {num_trajectories} is more than this server runs at once"
            raise RequestError(f"{message} ({self._max_concurrent})", param="n")
        if self.num_active + num_trajectories > self._max_concurrent:
            message = f"{self.num_active} of {self._max_concurrent} trajectories are under way"
            raise OverCapacity(message)
        self.num_active += num_trajectories
        try:
            yield
        finally:
            self.num_active -= num_trajectories
