"""Tells a trajectory whether its output is taken, because a client may stop to read."""

from typing import Protocol

from proxy.core.types import Notice


class Outlet(Protocol):
    """Takes the output of trajectories, and may be full."""

    @property
    def is_full(self) -> bool:
        """Return whether so much output waits that no more should be written."""
        ...

    async def has_room(self) -> None:
        """Return once it is not full."""
        ...


class WideOutlet:
    """An outlet that is never full, for answers that are sent whole."""

    @property
    def is_full(self) -> bool:
        return False

    async def has_room(self) -> None:
        """Return at once."""


class Observer(Protocol):
    """Gets text and decisions as they happen; must not block."""

    def text(self, text: str) -> None:
        """Take more of the output, which will not change."""
        ...

    def notice(self, notice: Notice) -> None:
        """Take a decision."""
        ...
