"""Asks trajectories of a proxy whose upstreams have replicas, and kills one of those."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.support.patience import PATIENCE_S

MODEL = "motab/pair"
_POLL_S = 0.05


class ReplicaServer(Protocol):
    """A server that can be killed with -9 and started again at the same address."""

    @property
    def base_url(self) -> str: ...

    async def start(self) -> None: ...

    async def kill(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Told:
    """One answer: its text, where it strayed, and the id by which records know it."""

    text: str
    breach: int | None
    response_id: str


@dataclass
class Client:
    """Asks by `num_workers` workers, each one question after the other."""

    http: httpx.AsyncClient
    num_workers: int
    more: dict[str, Any]
    """Further fields of each request."""
    told: dict[int, Told] = field(default_factory=dict)
    """The answers by the question's number."""
    _done: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def ask(self, number: int) -> Told:
        message = {"role": "user", "content": f"Q{number}"}
        body = {"model": MODEL, "messages": [message], "seed": number, **self.more}
        answer = await self.http.post("/motab/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        found = answer.json()
        (choice,) = found["choices"]
        return Told(choice["message"]["content"], choice["motab"]["breach"], found["id"])

    async def ask_all(self, numbers: Iterator[int]) -> None:
        """Ask every question once."""

        async def work() -> None:
            for number in numbers:
                assert number not in self.told
                self.told[number] = await self.ask(number)
                async with self._done:
                    self._done.notify_all()

        async with asyncio.TaskGroup() as group:
            for _ in range(self.num_workers):
                group.create_task(work())

    async def until_done(self, num: int) -> None:
        """Wait until that many questions are answered."""
        async with self._done:
            await self._done.wait_for(lambda: len(self.told) >= num)

    async def replica_gauge(self, name: str, upstream: str) -> dict[str, float]:
        """The values of a metric by replica."""
        answer = await self.http.get(str(self.http.base_url).replace("/v1/", "/metrics"))
        return {
            sample.labels["replica"]: sample.value
            for family in text_string_to_metric_families(answer.text)
            for sample in family.samples
            if sample.name == name and sample.labels["upstream"] == upstream
        }

    async def until_even(self, upstream: str, url: str) -> float:
        """Seconds until a replica is in and has as many trajectories as the others, but for 2."""
        began = time.monotonic()
        async with asyncio.timeout(PATIENCE_S):
            while True:
                up = await self.replica_gauge("motab_replica_up", upstream)
                load = await self.replica_gauge("motab_replica_trajectories", upstream)
                if up[url] and max(load.values()) > 2 >= max(load.values()) - min(load.values()):
                    return time.monotonic() - began
                await asyncio.sleep(_POLL_S)


@asynccontextmanager
async def client(base_url: str, num_workers: int, **more: Any) -> AsyncIterator[Client]:
    """A client; `more` are fields of each request."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=base_url, timeout=PATIENCE_S, limits=limits) as http:
        yield Client(http, num_workers, more)


@dataclass(frozen=True, slots=True)
class Endured:
    """The outcome of a run with a kill."""

    told: dict[int, Told]
    even_after_s: float
    """Seconds from the replica's return until the load was even."""
    requests: Counter[str]
    """Requests by how they ended, at the replica that was killed."""


async def endure_a_kill(
    client: Client, upstream: str, victim: ReplicaServer, num: int, *, down_s: float
) -> Endured:
    """Ask `num` questions, kill a replica with -9 after a third of them, start it again, and keep
    asking other questions until the load is even.
    """
    further = iter(range(1_000_000, 2_000_000))
    asking = asyncio.create_task(client.ask_all(iter(range(num))))
    await client.until_done(num // 3)
    await victim.kill()
    await asyncio.sleep(down_s)
    up = await client.replica_gauge("motab_replica_up", upstream)
    assert sorted(up.values()) == [0, 1]
    assert up[victim.base_url] == 0
    await victim.start()
    loading = asyncio.create_task(client.ask_all(further))
    even_after_s = await client.until_even(upstream, victim.base_url)
    await asking
    loading.cancel()
    await asyncio.wait([loading])
    answer = await client.http.get(str(client.http.base_url).replace("/v1/", "/metrics"))
    outcomes: Counter[str] = Counter()
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            labels = sample.labels
            if sample.name == "motab_replica_requests_total" and (
                labels["upstream"],
                labels["replica"],
            ) == (upstream, victim.base_url):
                outcomes[labels["outcome"]] += int(sample.value)
    told = {number: one for number, one in client.told.items() if number < num}
    return Endured(told, even_after_s, outcomes)
