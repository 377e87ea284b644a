"""Keeps a trajectory on the servers where its calls began, until it ends."""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar


class Leavable(Protocol):
    """A place that a trajectory has at some server."""

    def leave(self) -> None:
        """Give the place up; called once."""
        ...


T = TypeVar("T", bound=Leavable)


class Stay:
    """The places of one trajectory, by whoever gave them. Only while it is under way are places
    kept; calls before and after find a new place each time.
    """

    __slots__ = ("_places",)

    def __init__(self) -> None:
        self._places: dict[Hashable, Any] | None = None

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep places as long as the context lasts."""
        self._places = {}
        try:
            yield
        finally:
            places, self._places = self._places, None
            for place in places.values():
                place.leave()

    def at(self, giver: Hashable, make: Callable[[], T]) -> T | None:
        """Return the trajectory's place there, made at the first call; None if none is kept."""
        if self._places is None:
            return None
        if giver not in self._places:
            self._places[giver] = make()
        place: T = self._places[giver]
        return place
