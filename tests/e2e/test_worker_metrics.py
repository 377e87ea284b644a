"""Tests the gauges of upstreams, which are sums over the workers."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

from tests.support.patience import PATIENCE_S
from tests.support.proxy.workers import (
    Served,
    ask_all,
    clients,
    motab,
    samples,
    writes_after,
)
from tests.support.replay import Replay

LOAD = ("waiting", "running", "max_concurrent")


async def loads(served: Served) -> list[float]:
    found = await samples(served)
    return [found[f"motab_upstream_{name}", "write", "only"] for name in LOAD]


async def until_loaded(served: Served, wanted: list[float]) -> None:
    deadline = asyncio.get_running_loop().time() + PATIENCE_S
    while (found := await loads(served)) != wanted:
        assert asyncio.get_running_loop().time() < deadline, found


async def test_queue_and_load_are_those_of_all_workers_also_after_one_has_died(
    llama: Replay, tmp_path: Path
) -> None:
    gate = asyncio.Event()
    writes_after(llama, gate)
    only = {"kind": "llamacpp", "base_url": llama.client.base_url, "model": "m"}
    upstreams = {"only": {**only, "max_concurrent": 2}}
    async with motab(llama, tmp_path, upstreams=upstreams) as served, AsyncExitStack() as stack:
        assert await loads(served) == [0, 0, 2]
        asking = asyncio.create_task(ask_all(await clients(stack, 16), served))
        await until_loaded(served, [14, 2, 2])
        served.workers()[0].kill()
        await served.until_said("serves again")
        found = await loads(served)
        assert found[1:] == [1, 2]
        assert found[0] < 14
        gate.set()
        answers = await asking
        assert set(answers) == {0, 200}
        await until_loaded(served, [0, 0, 2])
        (processes,) = (v for k, v in (await samples(served)).items() if k[0] == "motab_processes")
        assert processes == 2
