"""Tells a trajectory whether its output is taken, because a client may stop to read."""

from typing import Protocol


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
