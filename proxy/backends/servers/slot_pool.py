"""Leases the slots of a llama.cpp server, so that a trajectory finds its cache again."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from proxy.backends.base import Call
from proxy.backends.transport.http import UpstreamClient
from proxy.backends.worker_slots import ALL_SLOTS, WorkerSlots


class SlotPool:
    """Hands out the server's slots, one per request; a trajectory gets its last slot if it can.

    A slot caches what it decoded last; without that cache, forced decoding would compute the whole
    context again for every step. Processes that share the server divide the slots among them,
    because two requests in one slot would wait for each other.
    """

    def __init__(self, num_slots: int, worker_slots: WorkerSlots = ALL_SLOTS) -> None:
        own = worker_slots.of(range(num_slots))
        self._free = asyncio.Semaphore(len(own))
        # Least recently used first.
        self._idle: dict[int, str | None] = dict.fromkeys(own)

    @asynccontextmanager
    async def lease(self, session_id: str) -> AsyncIterator[int]:
        """Lend a slot for one request (or one run of forced tokens)."""
        async with self._free:
            own = (slot for slot, owner in self._idle.items() if owner == session_id)
            slot = next(own, next(iter(self._idle)))
            del self._idle[slot]
            try:
                yield slot
            finally:
                self._idle[slot] = session_id


class ReplicaSlots:
    """The slots of every replica of a server, which has `num_slots` each."""

    def __init__(self, client: UpstreamClient, num_slots: int, worker_slots: WorkerSlots) -> None:
        self._client = client
        self._num_slots = num_slots
        self._worker_slots = worker_slots
        self._pools: dict[str, SlotPool] = {}

    def lease(self, call: Call) -> AbstractAsyncContextManager[int]:
        """Lend a slot of the replica to which the call goes.

        If that replica fails, the same slot of another one is used; the server then lets two
        requests in a slot wait for each other.
        """
        url = self._client.url_for(call)
        if url not in self._pools:
            self._pools[url] = SlotPool(self._num_slots, self._worker_slots)
        return self._pools[url].lease(call.session_id)
