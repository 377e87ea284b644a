"""Tests how `motab serve --workers N` starts, and how it ends where it cannot."""

import asyncio
import signal
import sys
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

from tests.support.proxy.workers import LOADING, ask_all, clients, failure, motab
from tests.support.replay import Replay, json_reply


async def test_a_signal_ends_workers_that_wait_for_an_upstream(
    llama: Replay, tmp_path: Path
) -> None:
    llama.on("GET", "/props", LOADING)
    async with motab(llama, tmp_path, "--wait", "60", ready=False) as served:
        await llama.until_seen(2)
        served.process.send_signal(signal.SIGTERM)
        assert await served.ended() == 0


async def test_an_upstream_that_does_not_answer_is_told_once(llama: Replay, tmp_path: Path) -> None:
    llama.on("GET", "/props", LOADING)
    async with motab(llama, tmp_path, num=3, ready=False) as served:
        assert (await failure(served)).startswith("upstream 'only': /props answered 503: ")
        assert len(served.lines) == 1


async def test_a_server_with_too_few_slots_is_told_once(llama: Replay, tmp_path: Path) -> None:
    llama.on("GET", "/props", json_reply({"total_slots": 1}))
    async with motab(llama, tmp_path, ready=False) as served:
        wanted = "upstreams.only: its server has 1 slots and 2 workers need one each: "
        assert (await failure(served)).startswith(wanted)


async def test_a_server_does_not_begin_with_some_of_its_workers(
    llama: Replay, tmp_path: Path
) -> None:
    gate = asyncio.Event()
    llama.on("GET", "/props", json_reply({"total_slots": 2}), replace(LOADING, after=gate))
    async with motab(llama, tmp_path, ready=False) as served:
        await llama.until_seen(8)
        await asyncio.sleep(0.5)  # one of them may serve
        gate.set()
        assert (await failure(served)).startswith("upstream 'only': /props answered 503: ")


async def test_workers_that_die_as_they_start_end_the_server(llama: Replay, tmp_path: Path) -> None:
    llama.on("GET", "/props", LOADING)
    async with motab(llama, tmp_path, "--wait", "60", ready=False) as served:
        await llama.until_seen(2)
        served.workers()[0].kill()
        wanted = "a worker ended as it started: killed by signal 9 (Killed)\n"
        assert await failure(served) == wanted


async def test_a_worker_is_tried_again_while_others_serve(llama: Replay, tmp_path: Path) -> None:
    async with motab(llama, tmp_path) as served, AsyncExitStack() as stack:
        llama.on("GET", "/props", LOADING)
        served.workers()[0].kill()
        await served.until_said("/props answered 503")
        assert await ask_all(await clients(stack, 8), served) == [200] * 8
        llama.on("GET", "/props", json_reply({"total_slots": 2}))
        await served.until_said("serves again")


async def test_where_no_worker_can_serve_any_more_it_ends(llama: Replay, tmp_path: Path) -> None:
    async with motab(llama, tmp_path) as served:
        llama.on("GET", "/props", LOADING)
        for worker in served.workers():
            worker.kill()
        assert (await failure(served)).startswith("upstream 'only': /props answered 503: ")


async def test_a_second_server_does_not_share_the_address(llama: Replay, tmp_path: Path) -> None:
    async with motab(llama, tmp_path) as first:
        port = first.url.rpartition(":")[2]
        async with motab(llama, tmp_path, "--port", port, ready=False) as second:
            said = await failure(second)
    assert said.startswith(f"cannot listen on 127.0.0.1:{port}: Address already in use")


async def test_workers_are_made_of_the_command_s_modules_wherever_it_is_started(
    llama: Replay, tmp_path: Path
) -> None:
    script, cwd = tmp_path / "bin" / "motab", tmp_path / "cwd"
    (cwd / "proxy").mkdir(parents=True)
    (cwd / "proxy" / "__init__.py").write_text("raise RuntimeError", encoding="utf-8")
    script.parent.mkdir()
    script.write_text("from motab.cli import main; main()", encoding="utf-8")
    command = (sys.executable, str(script))
    async with motab(llama, tmp_path, motab=command, cwd=cwd) as served, AsyncExitStack() as stack:
        assert await ask_all(await clients(stack, 4), served) == [200] * 4
