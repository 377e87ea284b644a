"""Tests `motab serve --workers N` under load, signals and kills."""

import asyncio
import os
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import psutil
import pytest

from tests.support.patience import PATIENCE_S
from tests.support.proxy.workers import (
    LIMIT,
    LOADING,
    Served,
    ask,
    ask_all,
    clients,
    motab,
    num_safe,
    samples,
    until_active,
    until_refused,
    writes_after,
)
from tests.support.replay import Replay


async def test_every_worker_serves_and_any_tells_the_metrics_of_all(
    llama: Replay, tmp_path: Path
) -> None:
    async with motab(llama, tmp_path) as served, AsyncExitStack() as stack:
        assert await ask_all(await clients(stack, 32), served) == [200] * 32
        accepted = [served.connections(worker) for worker in served.workers()]
        assert len(accepted) == 2
        assert sum(accepted) == 32
        assert all(accepted)
        for _ in range(8):  # each time over a new connection
            found = await samples(served)
            route = "/v1/completions"
            assert found["motab_requests_total", route, "200"] == 32
            assert found["motab_request_seconds_count", route] == 32
            assert found["motab_tokens_total", "student", "student/only"] == 32
            assert found["motab_active_trajectories",] == 0


@pytest.mark.parametrize("num", [1, 2])
async def test_the_port_for_health_is_one_for_all_workers(
    llama: Replay, tmp_path: Path, num: int
) -> None:
    async with motab(llama, tmp_path, "--health-port", "0", num=num) as served:
        port = (await served.until_said("health is at port")).split()[-1]
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            answer = await client.get("/health")
            assert (answer.status_code, answer.json()) == (200, {"status": "alive"})
            for worker in served.workers():
                worker.kill()
            if served.workers():
                await served.until_said("worker 2 serves again")
                await served.until_said("worker 1 serves again")
            assert (await client.get("/health")).status_code == 200
        served.process.send_signal(signal.SIGTERM)
        assert await served.ended() == 0


async def test_one_worker_is_the_process_itself(llama: Replay, tmp_path: Path) -> None:
    async with motab(llama, tmp_path, num=1) as served, AsyncExitStack() as stack:
        assert not served.workers()
        assert await ask_all(await clients(stack, 4), served) == [200] * 4
        assert await num_safe(served) == 4
        served.process.send_signal(signal.SIGTERM)
        assert await served.ended() == 0


def to_the_supervisor(served: Served) -> None:
    served.process.send_signal(signal.SIGTERM)


def from_the_terminal(served: Served) -> None:
    os.killpg(served.process.pid, signal.SIGINT)


def from_a_service_manager(served: Served) -> None:
    for process in (*served.workers(), psutil.Process(served.process.pid)):
        process.terminate()


@pytest.mark.parametrize(
    "signalled", [to_the_supervisor, from_the_terminal, from_a_service_manager]
)
async def test_a_signal_lets_every_worker_finish_what_is_under_way(
    signalled: Callable[[Served], None], llama: Replay, tmp_path: Path
) -> None:
    gate = asyncio.Event()
    writes_after(llama, gate)
    async with motab(llama, tmp_path) as served, AsyncExitStack() as stack:
        running = asyncio.create_task(ask_all(await clients(stack, LIMIT), served))
        await until_active(served, LIMIT)
        signalled(served)
        await served.until_said(f"draining: {LIMIT} trajectories under way")
        await until_refused(served)
        # None took it for two signals and stopped.
        done, _ = await asyncio.wait({running}, timeout=0.5)
        assert not done
        gate.set()
        assert await running == [200] * LIMIT
        assert await served.ended() == 0


async def test_a_second_signal_stops_every_worker_at_once(llama: Replay, tmp_path: Path) -> None:
    writes_after(llama, asyncio.Event())
    async with motab(llama, tmp_path) as served, AsyncExitStack() as stack:
        running = asyncio.create_task(ask_all(await clients(stack, LIMIT), served))
        await until_active(served, LIMIT)
        workers = served.workers()
        served.process.send_signal(signal.SIGTERM)
        await served.until_said("draining")
        await until_refused(served)
        assert all(worker.is_running() for worker in workers)
        served.process.send_signal(signal.SIGTERM)
        assert await served.ended() == 0
        assert not any(worker.is_running() for worker in workers)
        assert 200 not in await running


async def test_a_killed_worker_costs_its_own_requests_only_and_is_replaced(
    llama: Replay, tmp_path: Path
) -> None:
    gate = asyncio.Event()
    async with (
        motab(llama, tmp_path, max_concurrent=LIMIT) as served,
        AsyncExitStack() as stack,
    ):
        asking = await clients(stack, LIMIT)
        assert await ask_all(asking, served) == [200] * LIMIT
        writes_after(llama, gate)
        running = asyncio.create_task(ask_all(asking, served))
        await until_active(served, LIMIT)
        victim = served.workers()[0]
        num_lost = served.connections(victim)
        assert await ask_all(await clients(stack, 1), served) == [429]
        victim.kill()
        await served.until_said("ended: killed by signal 9 (Killed); starting another")
        await served.until_said("serves again")
        gate.set()
        assert sorted(await running) == [0] * num_lost + [200] * (LIMIT - num_lost)
        assert len(served.workers()) == 2
        assert await num_safe(served) == 2 * LIMIT - num_lost

        await until_active(served, 0)

        # The dead worker's seats are free.
        gate.clear()
        running = asyncio.create_task(ask_all(await clients(stack, LIMIT), served))
        await until_active(served, LIMIT)
        assert await ask_all(await clients(stack, 1), served) == [429]
        gate.set()
        assert await running == [200] * LIMIT
        assert await num_safe(served) == 3 * LIMIT - num_lost


async def test_the_limit_of_trajectories_is_that_of_all_workers(
    llama: Replay, tmp_path: Path
) -> None:
    gate = asyncio.Event()
    writes_after(llama, gate)
    async with motab(llama, tmp_path, max_concurrent=3) as served, AsyncExitStack() as stack:
        running = {asyncio.create_task(ask(c, served)) for c in await clients(stack, LIMIT)}
        async with asyncio.timeout(PATIENCE_S):
            while len(running) > 3:
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                assert {task.result() for task in done} == {429}
        await until_active(served, 3)
        gate.set()
        assert await asyncio.gather(*running) == [200] * 3


@pytest.mark.parametrize("ready", [True, False], ids=["serving", "starting"])
async def test_workers_do_not_outlive_a_killed_supervisor(
    ready: bool, llama: Replay, tmp_path: Path
) -> None:
    if not ready:
        llama.on("GET", "/props", LOADING)
    async with motab(llama, tmp_path, "--wait", "60", ready=ready) as served:
        await llama.until_seen(2)
        workers = served.workers()
        assert len(workers) == 2
        served.process.kill()
        _, alive = await asyncio.to_thread(psutil.wait_procs, workers, PATIENCE_S)
        assert not alive
