"""Finds out which upstreams answer, for `/ready`, with few calls however many clients ask."""

import asyncio
from collections.abc import Iterable

from proxy.engine.upstream import Upstream
from proxy.errors import UpstreamError

OK = "ok"
_TIMEOUT_S = 5.0


class Readiness:
    """Asks each upstream for its state. Clients that ask at the same time share the answer."""

    def __init__(self, upstreams: Iterable[Upstream]) -> None:
        self._upstreams = list(upstreams)
        self._asking = asyncio.Lock()
        self._num_asked = 0
        self._states: dict[str, str] = {}

    async def states(self) -> dict[str, str]:
        """Return `ok` or what is wrong, by upstream, as it was no earlier than this call."""
        # The next time that all are asked begins after this call, whoever it is that asks.
        due = self._num_asked + 1
        async with self._asking:
            if self._num_asked < due:
                self._num_asked += 1
                found = await asyncio.gather(*(_state(upstream) for upstream in self._upstreams))
                names = (upstream.name for upstream in self._upstreams)
                self._states = dict(zip(names, found, strict=True))
            return self._states

    def replicas(self) -> dict[str, dict[str, str]]:
        """Return how the replicas are, by upstream and address, of upstreams that have several."""
        return {
            upstream.name: dict(upstream.replicas.states())
            for upstream in self._upstreams
            if upstream.replicas is not None and upstream.replicas.are_several
        }


async def _state(upstream: Upstream) -> str:
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            await upstream.writer.check()
    except UpstreamError as error:
        return str(error)
    except TimeoutError:
        return f"no answer within {_TIMEOUT_S:g} s"
    return OK
