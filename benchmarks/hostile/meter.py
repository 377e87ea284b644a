"""Measures a proxy during an attack: its memory, processor and `/health`, and the other users."""

import asyncio
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from benchmarks.figures import quantile
from benchmarks.hostile.attack import Access, Attack, Target
from benchmarks.load import together, trajectory
from benchmarks.processes import KEY, PAIR, Process, proxy, simulated_pair
from benchmarks.simulator.engine import Rates
from benchmarks.simulator.plan import Plan

_RATES = Rates(decode_tok_s=200, prefill_tok_s=1e6, max_running=64)
_PLAN = Plan(0, 5, 40)
_NUM_USERS = 4
_WARM_UP = 3  # trajectories of every user, until the memory is that of a proxy that has served
_SAMPLE_S = 0.02


@dataclass(frozen=True, slots=True)
class Row:
    """The cost of one attack, and its answer."""

    threat: str
    attack: str
    tried: str
    access: Access
    answer: str
    seconds: float
    memory_before_mb: float
    memory_peak_mb: float
    processor_s: float
    """Above what the other users' trajectories took."""
    health_worst_ms: float | None
    """None where no server was attacked."""
    health_p99_ms: float | None
    num_unharmed: int
    """Trajectories of other users that finished as planned."""
    num_harmed: int

    @property
    def memory_ratio(self) -> float:
        """The peak as a multiple of the memory before."""
        return self.memory_peak_mb / self.memory_before_mb

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Self:
        return cls(**row)


@dataclass(slots=True)
class _Users:
    """Other users of the proxy, each with one trajectory after another."""

    proxy: Process
    num_unharmed: int = 0
    harm: list[str] = field(default_factory=list)
    stopping: bool = False

    async def ask(self) -> None:
        try:
            await trajectory(self.proxy, _PLAN)
        except Exception as error:  # noqa: BLE001 - any failure is harm, and is counted
            self.harm.append(repr(error))
        else:
            self.num_unharmed += 1

    async def stay(self) -> None:
        while not self.stopping:
            await self.ask()


async def measure(attack: Attack, access: Access, num_bytes: int, code: Path) -> Row:
    """Run the proxy of that folder, attack it while others use it, and return the figures."""
    server: dict[str, Any] = {} if access == "keyless" else {"api_keys": [KEY]}
    async with (
        simulated_pair("sglang", _RATES, _RATES) as pair,
        proxy({PAIR: pair}, code, **server) as motab,
    ):
        users = _Users(motab)
        for _ in range(_WARM_UP):
            await together(users.ask() for _ in range(_NUM_USERS))
        if users.harm:
            raise RuntimeError(f"before the attack: {users.harm[0]}")
        began, cpu_s = time.perf_counter(), motab.cpu_s()
        await together(users.ask() for _ in range(_NUM_USERS))
        usual_load = (motab.cpu_s() - cpu_s) / (time.perf_counter() - began)
        url = urlsplit(motab.base_url)
        key = KEY if access == "key" else None
        target = Target(url.hostname or "", url.port or 0, key, num_bytes, PAIR)
        return await _attacked(attack, access, target, users, usual_load)


async def _attacked(
    attack: Attack, access: Access, target: Target, users: _Users, usual_load: float
) -> Row:
    motab, loop = users.proxy, asyncio.get_running_loop()
    before_mb = peak_mb = motab.rss_mb()
    users.num_unharmed = 0
    health_ms: list[float] = []

    async def weigh() -> None:
        nonlocal peak_mb
        while True:
            peak_mb = max(peak_mb, motab.rss_mb())
            await asyncio.sleep(_SAMPLE_S)

    async def ask_health() -> None:
        while not users.stopping:
            asked = time.perf_counter()
            async with motab.http.get(f"{motab.base_url}/health") as response:
                response.raise_for_status()
            health_ms.append((time.perf_counter() - asked) * 1000)
            await asyncio.sleep(_SAMPLE_S)

    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        await loop.run_in_executor(pool, time.time)  # its process has started
        began, cpu_s = time.perf_counter(), motab.cpu_s()
        async with asyncio.TaskGroup() as group:
            weighing = group.create_task(weigh())
            asking = group.create_task(ask_health())
            staying = [group.create_task(users.stay()) for _ in range(_NUM_USERS)]
            answer = await loop.run_in_executor(pool, attack.run, target)
            seconds = time.perf_counter() - began
            users.stopping = True
            await asyncio.wait([*staying, asking])
            weighing.cancel()
        used_s = motab.cpu_s() - cpu_s - usual_load * (time.perf_counter() - began)
    return Row(
        threat=attack.threat,
        attack=attack.name,
        tried=attack.tried,
        access=access,
        answer=answer,
        seconds=seconds,
        memory_before_mb=before_mb,
        memory_peak_mb=max(peak_mb, motab.rss_mb()),
        processor_s=max(0.0, used_s),
        health_worst_ms=max(health_ms),
        health_p99_ms=quantile(health_ms, 0.99),
        num_unharmed=users.num_unharmed,
        num_harmed=len(users.harm),
    )
