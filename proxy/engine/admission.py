"""Admits trajectories while the whole server has seats for them, and none while it drains."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from proxy.errors import Draining, OverCapacity, RequestError


class Seats(Protocol):
    """The seats for trajectories in a whole server, whichever of its processes runs them."""

    @property
    def num_taken(self) -> int: ...

    def take(self, num: int, most: int) -> bool:
        """Take `num` seats unless more than `most` would be taken; return whether it did."""
        ...

    def leave(self, num: int) -> None: ...


@dataclass(slots=True)
class OwnSeats:
    """The seats of a server that is one process."""

    num_taken: int = 0

    def take(self, num: int, most: int) -> bool:
        fits = self.num_taken + num <= most
        self.num_taken += num if fits else 0
        return fits

    def leave(self, num: int) -> None:
        self.num_taken -= num


class Admission:
    """Counts this process's trajectories, and gives each a seat of the whole server.

    `on_change` is called with every new count.
    """

    def __init__(self, max_concurrent: int, seats: Seats, on_change: Callable[[int], None]) -> None:
        self._max_concurrent = max_concurrent
        self._seats = seats
        self._on_change = on_change
        self.num_active = 0
        self.draining = False

    @contextmanager
    def admit(self, num_trajectories: int) -> Iterator[None]:
        """Take seats until the block ends.

        Raises `OverCapacity`, `Draining`, or `RequestError` if there could never be enough.
        """
        if self.draining:
            raise Draining("the server is shutting down")
        if num_trajectories > self._max_concurrent:
            message = f"n = {num_trajectories} is more than this server runs at once"
            raise RequestError(f"{message} ({self._max_concurrent})", param="n")
        if not self._seats.take(num_trajectories, self._max_concurrent):
            taken = self._seats.num_taken
            raise OverCapacity(f"{taken} of {self._max_concurrent} trajectories are under way")
        self._count(num_trajectories)
        try:
            yield
        finally:
            self._seats.leave(num_trajectories)
            self._count(-num_trajectories)

    def _count(self, change: int) -> None:
        self.num_active += change
        self._on_change(self.num_active)
