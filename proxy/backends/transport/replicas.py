"""Chooses the replica of an upstream that gets a call, and takes replicas out and in again.

A trajectory stays on one replica, whose prefix cache then serves it, and a new one begins where the
fewest are. A replica that fails is out: its trajectories move with their next call, or with the
repetition of the call that failed, and a probe in the background takes it in again.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from typing import Self

from proxy.backends.base import Call
from proxy.backends.transport.replica import Replica, ReplicaObserver
from proxy.errors import (
    MotabError,
    UpstreamDenied,
    UpstreamError,
    UpstreamFailed,
    UpstreamGarbled,
    UpstreamUnreachable,
)

OK = "ok"
NOT_ASKED = "not asked yet"
# A server that answers with errors may refuse one bad request only, so it takes several in a row.
_FAILURES_TO_TAKE_OUT = 3
_FIRST_PAUSE_S = 0.5
# Well below 30 s, within which a replica that is back shall be in use.
_LONGEST_PAUSE_S = 10.0
_log = logging.getLogger(__name__)

Verify = Callable[[str], Awaitable[None]]
"""Asks the server at a URL whether it is a replica. Raises a retryable `UpstreamError` if it does
not answer, another one if it serves something else."""


class Replicas:
    """The servers of one upstream; use it as an async context manager to have them probed.

    A single server is never probed and gets every call, also if it failed before.
    """

    def __init__(
        self,
        upstream: str,
        base_urls: Iterable[str],
        observer: ReplicaObserver | None = None,
        first: int = 0,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`first` is the one with which to begin, which differs among the processes of a server."""
        self.upstream = upstream
        self._observer = observer
        self._sleep = sleep
        urls = list(dict.fromkeys(base_urls))
        fault = NOT_ASKED if len(urls) > 1 else None
        self._all = {
            url: Replica(url, (index - first) % len(urls), fault) for index, url in enumerate(urls)
        }
        self._turns = count(len(urls))
        self._verify: Verify | None = None
        for replica in self._all.values():
            self._tell_state(replica)
            self._tell_load(replica)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = [one.probing for one in self._all.values() if one.probing is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def are_several(self) -> bool:
        return len(self._all) > 1

    @property
    def num_in(self) -> int:
        """The number of replicas that get new trajectories."""
        return sum(replica.fault is None for replica in self._listed())

    @property
    def num_busy(self) -> int:
        """The number of replicas that have trajectories."""
        return sum(replica.num_trajectories > 0 for replica in self._all.values())

    def states(self) -> Mapping[str, str]:
        """Return how each replica is, by its address: `ok`, or what is wrong."""
        return {
            one.name: one.fault or ("draining" if one.is_draining else OK)
            for one in self._all.values()
        }

    async def open(self, verify: Verify) -> None:
        """Ask all replicas who they are; from now on those that are out are probed.

        Raises the error of a replica that serves something else, or of one that does not answer
        if none does. May be repeated.
        """
        self._verify = verify
        waiting = [one for one in self._all.values() if one.fault is not None]
        faults = await _faults(verify, [one.base_url for one in waiting])
        for replica in waiting:
            if (error := faults[replica.base_url]) is None:
                self._take_in(replica)
            else:
                replica.fault = str(error)
        _raise_unless_some_are_in(faults, is_in=self.num_in > 0)

    def probe(self) -> None:
        """Have every replica that is out probed, from now on."""
        for replica in self._listed():
            if replica.fault is not None:
                self._log_out(replica)
                self._begin_probing(replica)

    async def replace(self, base_urls: Iterable[str]) -> None:
        """Make these the replicas. One that is no longer among them finishes its trajectories.

        Raises an `UpstreamError`, and changes nothing, if a new one serves something else, or if
        none of them answers.
        """
        urls = list(dict.fromkeys(base_urls))
        new = [url for url in urls if url not in self._all]
        if self._verify is None:
            raise MotabError(f"upstream '{self.upstream}' is not open; please report this")
        faults = await _faults(self._verify, new)
        known = [self._all[url] for url in urls if url in self._all]
        # Where nothing is new, all may be down as they were before.
        is_in = not new or any(one.fault is None for one in known)
        _raise_unless_some_are_in(faults, is_in=is_in)
        for url in new:
            error = faults[url]
            replica = Replica(url, next(self._turns), None if error is None else str(error))
            self._all[url] = replica
            self._tell_load(replica)
            self._tell_state(replica)
        for url, replica in list(self._all.items()):
            replica.is_draining = url not in urls
            if replica.is_draining:
                _log.info("upstream '%s': draining replica %s", self.upstream, replica.name)
                self._let_go(replica)
            elif url in new:
                _log.info("upstream '%s': replica %s is new", self.upstream, replica.name)
        self.probe()

    def place(self, call: Call) -> "Place":
        """Return the trajectory's place, or a place for this one call."""
        kept = call.stay.at(self, lambda: Place(self, stays=True))
        return kept or self.visitor()

    def visitor(self) -> "Place":
        """Return a place for a call that belongs to no trajectory."""
        return Place(self, stays=False)

    def choose(self, stayed: Replica | None, failed: Replica | None) -> Replica:
        """Return the replica for a call that is so far at `stayed`, and was last failed by
        `failed`, to which it returns only if there is no other.
        """
        if stayed is not None and stayed.fault is None and stayed is not failed:
            return stayed
        fit = [one for one in self._listed() if one.fault is None]
        # Where all are out, each call finds out for itself, as with a single server.
        fit = fit or [one for one in self._all.values() if one.may_be_tried]
        chosen = min([one for one in fit if one is not failed] or fit, key=Replica.load)
        chosen.turn = next(self._turns)
        return chosen

    def has_other(self, replica: Replica) -> bool:
        """Return whether another replica is in."""
        return any(one.fault is None for one in self._listed() if one is not replica)

    def begin(self, replica: Replica) -> None:
        """A call goes there."""
        replica.num_running += 1
        self._tell_load(replica)

    def end(self, replica: Replica, outcome: str) -> None:
        """A call to it has ended."""
        replica.num_running -= 1
        self._tell_load(replica)
        if self._observer is not None:
            self._observer.replica_request(self.upstream, replica.name, outcome)
        self._let_go(replica)

    def came(self, replica: Replica, num: int) -> None:
        """Count trajectories that came, or left."""
        replica.num_trajectories += num
        self._tell_load(replica)
        self._let_go(replica)

    def succeeded(self, replica: Replica) -> None:
        """It answered a call."""
        replica.num_failures = replica.num_outs = 0
        if replica.fault is not None and replica.may_be_tried and not self.are_several:
            self._take_in(replica)

    def failed(self, replica: Replica, error: UpstreamError) -> None:
        """A call failed there, and another replica might have answered it."""
        replica.num_failures += 1
        is_gone = isinstance(error, UpstreamUnreachable)
        if replica.fault is None and (is_gone or replica.num_failures >= _FAILURES_TO_TAKE_OUT):
            replica.fault = str(error)
            self._tell_state(replica)
            if self.are_several:
                self._log_out(replica)
                self._begin_probing(replica)
            replica.num_outs += 1

    def _listed(self) -> list[Replica]:
        return [one for one in self._all.values() if not one.is_draining]

    def _begin_probing(self, replica: Replica) -> None:
        is_probed = replica.probing is not None and not replica.probing.done()
        if self.are_several and self._verify is not None and not is_probed:
            # One that comes back and fails again is asked more rarely.
            pause_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(replica.num_outs, 16))
            replica.probing = asyncio.create_task(self._probe(replica, self._verify, pause_s))

    async def _probe(self, replica: Replica, verify: Verify, pause_s: float) -> None:
        """Ask a replica ever more rarely, until it may be taken in."""
        while not replica.is_draining:
            await self._sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
            pause_s = min(_LONGEST_PAUSE_S, 2 * pause_s)
            fault = (await _faults(verify, [replica.base_url]))[replica.base_url]
            if fault is None:
                self._take_in(replica)
                return
            replica.may_be_tried &= fault.retryable
            if str(fault) != replica.fault:
                replica.fault = str(fault)
                self._log_out(replica)

    def _take_in(self, replica: Replica) -> None:
        replica.fault, replica.may_be_tried, replica.num_failures = None, True, 0
        self._tell_state(replica)
        if self.are_several:
            _log.info("upstream '%s': replica %s is in", self.upstream, replica.name)

    def _let_go(self, replica: Replica) -> None:
        """Forget a replica that was drained."""
        if not replica.is_draining or not replica.is_idle or replica.base_url not in self._all:
            return
        del self._all[replica.base_url]
        if replica.probing is not None:
            replica.probing.cancel()
        if self._observer is not None:
            self._observer.replica_up(self.upstream, replica.name, is_up=False)
        _log.info("upstream '%s': replica %s is drained", self.upstream, replica.name)

    def _log_out(self, replica: Replica) -> None:
        _log.warning(
            "upstream '%s': replica %s is out, %d of %d are in: %s",
            self.upstream,
            replica.name,
            self.num_in,
            len(self._listed()),
            replica.fault,
        )

    def _tell_state(self, replica: Replica) -> None:
        if self._observer is not None:
            is_up = replica.fault is None
            self._observer.replica_up(self.upstream, replica.name, is_up=is_up)

    def _tell_load(self, replica: Replica) -> None:
        if self._observer is not None:
            self._observer.replica_load(
                self.upstream, replica.name, replica.num_running, replica.num_trajectories
            )


class Place:
    """Sends the calls of a trajectory, or the attempts at one call, to a replica."""

    def __init__(self, replicas: Replicas, *, stays: bool) -> None:
        self._replicas = replicas
        self._stays = stays
        self._at: Replica | None = None
        self._failed: Replica | None = None

    @contextmanager
    def serving(self) -> Iterator[str]:
        """Give the URL of the replica that gets a call, and watch how the call ends."""
        replica, replicas = self._replica(), self._replicas
        replicas.begin(replica)
        outcome = "cancelled"
        try:
            yield replica.base_url
        except MotabError as error:
            outcome = error.code
            if isinstance(error, UpstreamError) and _is_of_the_server(error):
                replicas.failed(replica, error)
                self._failed = replica
                if isinstance(error, UpstreamFailed) and replicas.has_other(replica):
                    error.retry_after_s = None  # another one gets the repetition
            raise
        else:
            outcome = "ok"
            replicas.succeeded(replica)
        finally:
            replicas.end(replica, outcome)

    def url(self) -> str:
        """Return the URL of the replica that would get a call now."""
        return self._replica().base_url

    def leave(self) -> None:
        """End the trajectory's stay."""
        if self._at is not None:
            self._replicas.came(self._at, -1)

    def _replica(self) -> Replica:
        chosen = self._replicas.choose(self._at, self._failed)
        if self._stays and chosen is not self._at:
            left, self._at = self._at, chosen
            self._replicas.came(chosen, 1)
            if left is not None:
                self._replicas.came(left, -1)
        return chosen


def _is_of_the_server(error: UpstreamError) -> bool:
    """Return whether other requests would fail there, too."""
    return error.retryable or isinstance(error, UpstreamGarbled | UpstreamDenied)


def _raise_unless_some_are_in(faults: Mapping[str, UpstreamError | None], *, is_in: bool) -> None:
    """Raise the error of a server that is no replica, or of one that is down if none is in."""
    errors = [error for error in faults.values() if error is not None]
    fatal = next((error for error in errors if not error.retryable), None)
    if fatal is not None:
        raise fatal
    if errors and not is_in and len(errors) == len(faults):
        raise errors[0]


async def _faults(verify: Verify, base_urls: list[str]) -> dict[str, UpstreamError | None]:
    """Ask servers at the same time."""

    async def fault(base_url: str) -> UpstreamError | None:
        try:
            await verify(base_url)
        except UpstreamError as error:
            return error
        return None

    found = await asyncio.gather(*map(fault, base_urls))
    return dict(zip(base_urls, found, strict=True))
