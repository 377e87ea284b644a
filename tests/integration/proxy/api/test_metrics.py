"""Tests what the metrics count."""

import asyncio
from functools import partial

import httpx

from proxy import __version__
from proxy.engine.upstream import Places
from proxy.errors import UpstreamFailed
from tests.integration.proxy.api.test_plain_calls import TOOLS, Route, serving
from tests.support.proxy.api import (
    CHAT,
    MODEL,
    A,
    B,
    chat,
    in_process,
    samples_of,
    service_of,
    straying,
)
from tests.support.scripted import ScriptedBackend, says


async def test_the_metrics_count_requests_trajectories_tokens_and_calls() -> None:
    service = service_of(*straying())
    async with in_process(service) as client:
        await client.post(CHAT, json=chat(n=2))
        await client.post(CHAT, json=chat(stream=True))
        await client.post(CHAT, json=chat(n=0))
        await client.post("/nothing/here", json={})
        samples = await samples_of(client)
    assert samples["motab_requests_total", CHAT, "200"] == 2
    assert samples["motab_requests_total", CHAT, "400"] == 1
    assert samples["motab_requests_total", "unknown", "404"] == 1
    assert samples["motab_request_seconds_count", CHAT] == 3
    assert samples["motab_trajectories_total", "motab", MODEL, "breach"] == 3
    tokens = {key[1]: v for key, v in samples.items() if key[0] == "motab_tokens_total"}
    assert tokens == {
        "student": 9,
        "student_discarded": 3,
        "teacher_scored": 3 * len(A + B),
        "teacher_cached": 0,
        "teacher": 6,
        "teacher_discarded": 0,
    }
    calls = {key[1]: v for key, v in samples.items() if key[0] == "motab_calls_total"}
    assert calls == {"student": 3, "score": 3, "correction": 3}
    assert samples["motab_active_trajectories",] == 0


async def test_the_metrics_tell_safe_failed_and_active_trajectories_apart() -> None:
    gate = asyncio.Event()
    student = ScriptedBackend(
        lambda sampling: says(gate, "x"), faults={("write", 0): UpstreamFailed("student", "down")}
    )
    async with in_process(service_of(student)) as client:
        assert (await client.post(CHAT, json=chat())).status_code == 502
        running = asyncio.create_task(client.post(CHAT, json=chat(n=2)))
        await student.until_called("write", 3)
        assert (await samples_of(client))["motab_active_trajectories",] == 2
        gate.set()
        await running
        samples = await samples_of(client)
    assert samples["motab_trajectories_total", "motab", MODEL, "failed"] == 1
    assert samples["motab_trajectories_total", "motab", MODEL, "safe"] == 2
    assert samples["motab_requests_total", CHAT, "502"] == 1
    assert samples["motab_active_trajectories",] == 0


async def test_the_load_of_an_upstream_is_known_from_the_start_to_the_end() -> None:
    gate = asyncio.Event()
    student = ScriptedBackend(says(gate, A))
    service = service_of(student)
    for upstream in service.upstreams():
        load = partial(service.metrics.upstream_load, upstream.name)
        upstream.writing = Places(2, partial(load, "write"))
        upstream.scoring = Places(3, partial(load, "score"))

    async def loads(client: httpx.AsyncClient, kind: str) -> list[float]:
        samples = await samples_of(client)
        names = ("waiting", "running", "max_concurrent")
        return [samples[f"motab_upstream_{name}", kind, "student"] for name in names]

    async with in_process(service) as client:
        assert await loads(client, "write") == [0, 0, 2]
        assert await loads(client, "score") == [0, 0, 3]
        asking = asyncio.create_task(client.post(CHAT, json=chat(n=5)))
        await student.until_called("write", 2)
        assert await loads(client, "write") == [3, 2, 2]
        gate.set()
        assert (await asking).status_code == 200
        assert await loads(client, "write") == [0, 0, 2]


async def test_a_request_that_is_passed_on_is_counted_by_its_end() -> None:
    route = Route()
    async with in_process(serving(route)) as client:
        body = chat(model="student/s", **TOOLS)
        await client.post(CHAT, json=body)
        await client.post(CHAT, json={**body, "stream": True})
        route.fault = UpstreamFailed("student", "down")
        await client.post(CHAT, json=body)
        samples = await samples_of(client)
    assert samples["motab_plain_calls_total", "student/s", "ok"] == 2
    assert samples["motab_plain_calls_total", "student/s", "upstream_failed"] == 1
    assert samples["motab_processes", __version__] == 1
