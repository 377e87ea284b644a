"""Describes one of the servers of an upstream, and who watches it."""

import asyncio
from typing import Protocol

from proxy.secrets import masked, without_userinfo


class ReplicaObserver(Protocol):
    """Sees how the replicas of all upstreams are; they go by their addresses."""

    def replica_up(self, upstream: str, replica: str, *, is_up: bool) -> None:
        """A replica was taken in or out."""
        ...

    def replica_load(
        self, upstream: str, replica: str, num_running: int, num_trajectories: int
    ) -> None:
        """The calls under way and the trajectories at a replica have changed."""
        ...

    def replica_request(self, upstream: str, replica: str, outcome: str) -> None:
        """A call ended: `ok`, `cancelled` or an error's code."""
        ...


class Replica:
    """One of the servers."""

    def __init__(self, base_url: str, turn: int, fault: str | None = None) -> None:
        self.base_url = base_url
        self.name = masked(without_userinfo(base_url))
        self.turn = turn
        """Where two have the same load, the one with the lower turn is next."""
        self.fault = fault
        """Why it is out; None: it is in."""
        self.may_be_tried = fault is None
        """Whether it gets calls while all are out; not if it may serve something else."""
        self.is_draining = False
        self.num_running = 0
        self.num_trajectories = 0
        self.num_failures = 0
        """The failures since its last success."""
        self.num_outs = 0
        """How often it was taken out since its last success."""
        self.probing: asyncio.Task[None] | None = None

    @property
    def is_idle(self) -> bool:
        """Return whether nothing is under way there."""
        return not self.num_running and not self.num_trajectories

    def load(self) -> tuple[int, int, int]:
        """The lowest is next. A trajectory counts while it waits for the other model, too."""
        return self.num_trajectories, self.num_running, self.turn
