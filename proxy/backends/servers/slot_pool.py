"""Leases the slots of a llama.cpp server, so that a trajectory finds its cache again."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from proxy.backends.base import ALL_SLOTS, WorkerSlots


class SlotPool:
    """Hands out the server's slots, one request each, a trajectory's last slot first.

    A slot holds the cache of what it decoded last; forced decoding without that cache would
    compute the whole context anew for every step. Processes that share the server take turns at
    the slots' numbers: two requests in one slot would wait for each other.
    """

    def __init__(self, num_slots: int, worker_slots: WorkerSlots = ALL_SLOTS) -> None:
        own = worker_slots.of(range(num_slots))
        self._free = asyncio.Semaphore(len(own))
        # Least recently used first.
        self._idle: dict[int, str | None] = dict.fromkeys(own)

    @asynccontextmanager
    async def lease(self, session_id: str) -> AsyncIterator[int]:
        """A slot for the time of one request (or of one run of forced tokens)."""
        async with self._free:
            own = (slot for slot, owner in self._idle.items() if owner == session_id)
            slot = next(own, next(iter(self._idle)))
            del self._idle[slot]
            try:
                yield slot
            finally:
                self._idle[slot] = session_id
