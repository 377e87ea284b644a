"""Divides the requests that an upstream takes at once among the processes of a server."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WorkerSlots:
    """One of the processes that make up a server: the `worker`-th (from 0) of `num_workers`."""

    worker: int = 0
    num_workers: int = 1

    def of(self, places: range) -> range:
        """The slots that belong to this process."""
        return places[self.worker :: self.num_workers]


ALL_SLOTS = WorkerSlots()
