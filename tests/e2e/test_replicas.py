"""Tests that SIGHUP adds and drains replicas of a running `motab serve`."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.patience import PATIENCE_S
from tests.support.proxy.toy_pair import STUDENT, TEACHER
from tests.support.proxy.workers import Served, config, motab
from tests.support.replay import Replay
from tests.support.toy_servers import Toy, toy_server

NUM_ASKED = 12


@pytest.fixture
async def toys() -> AsyncIterator[list[Toy]]:
    """Two replicas, and a server with another tokenizer."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(toy_server("vllm", model))
            for model in (STUDENT, STUDENT, TEACHER)
        ]


def upstreams(*replicas: Toy, **more: Any) -> dict[str, Any]:
    return {
        "only": {
            "kind": "vllm",
            "base_urls": [toy.base_url for toy in replicas],
            "model": "toy",
            "chat_template": "{% for message in messages %}{{ message.content }}{% endfor %}: ",
            "reasoning": "none",
            **more,
        }
    }


async def ask(served: Served, name: str) -> None:
    async with httpx.AsyncClient(timeout=PATIENCE_S) as client:
        body = {"model": "student/only", "prompt": name, "max_tokens": 8}
        url = f"{served.url}/v1/completions"
        answer = await client.post(url, json=body, headers={"x-request-id": name})
        assert answer.status_code == 200, answer.text


async def wrote(served: Served, toys: list[Toy], prefix: str) -> list[bool]:
    """Ask for new texts; return for each server whether it wrote one."""
    names = [f"{prefix}{i}" for i in range(NUM_ASKED)]
    await asyncio.gather(*(ask(served, name) for name in names))
    return [any(f"{name}-0" in toy.writes for name in names) for toy in toys]


async def reloaded(served: Served, text: str, times: int) -> None:
    """Send a SIGHUP, and wait until every process has said what it did."""
    already = len(served.lines)
    served.process.send_signal(signal.SIGHUP)
    async with asyncio.timeout(PATIENCE_S), served.said:
        await served.said.wait_for(
            lambda: sum(text in line for line in served.lines[already:]) >= times
        )


@pytest.mark.parametrize("num", [1, 2])
async def test_a_signal_adds_and_drains_replicas(
    num: int, toys: list[Toy], llama: Replay, tmp_path: Path
) -> None:
    first, second, other = toys
    async with motab(llama, tmp_path, num=num, upstreams=upstreams(first)) as served:
        assert await wrote(served, toys, "a") == [True, False, False]
        # One that serves something else changes nothing, and neither does a broken file.
        config(llama, tmp_path, upstreams(first, other))
        await reloaded(served, "upstream 'only' stay as they are", num)
        assert any(f"replica {other.base_url}: it serves another" in x for x in served.lines)
        (tmp_path / "motab.yaml").write_text("upstreams: {only: {kind: vllm}}", encoding="utf-8")
        await reloaded(served, "nothing was reloaded", 1)
        assert await wrote(served, toys, "b") == [True, False, False]
        config(llama, tmp_path, upstreams(first, second))
        await reloaded(served, "upstream 'only' has the replicas", num)
        assert await wrote(served, toys, "c") == [True, True, False]
        # A trajectory that is under way on a replica ends there.
        first.delay_s = second.delay_s = 1.0
        first.came.clear()
        second.came.clear()
        running = [asyncio.create_task(ask(served, f"d{i}")) for i in range(NUM_ASKED)]
        async with asyncio.timeout(PATIENCE_S):
            await first.came.wait()
            await second.came.wait()
        config(llama, tmp_path, upstreams(second, max_concurrent=7))
        await reloaded(served, "upstream 'only' has the replicas", num)
        assert "upstreams.only.max_concurrent" in await served.until_said("restart motab for")
        await asyncio.gather(*running)
        first.delay_s = second.delay_s = 0.0
        at_first = [f"d{i}" for i in range(NUM_ASKED) if f"d{i}-0" in first.writes]
        assert at_first
        assert await wrote(served, toys, "e") == [False, True, False]
        served.process.send_signal(signal.SIGTERM)
        assert await served.ended() == 0
    assert json.dumps(served.lines).count("worker 1 ended") == 0


async def test_a_worker_in_the_place_of_another_has_the_replicas_of_now(
    toys: list[Toy], llama: Replay, tmp_path: Path
) -> None:
    first, second, _ = toys
    async with motab(llama, tmp_path, upstreams=upstreams(first)) as served:
        config(llama, tmp_path, upstreams(second))
        await reloaded(served, "upstream 'only' has the replicas", 2)
        for worker in served.workers():
            worker.kill()
        await served.until_said("worker 2 serves again")
        await served.until_said("worker 1 serves again")
        assert await wrote(served, toys, "a") == [False, True, False]
