"""Whole runs of `motab synth --executor ray`, each with a Ray of its own on this machine."""

import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.synth_client.openai_server import Fault, Scripted, scripted
from tests.support.synth_client.runs import (
    Process,
    lines,
    records,
    run,
    steady,
    units,
    write_questions,
)

RAY = ("--executor", "ray", "--ray-workers", "2", "--concurrency", "8")


@pytest.fixture
async def server() -> AsyncIterator[Scripted]:
    async with scripted() as found:
        yield found


@pytest.fixture
async def other() -> AsyncIterator[Scripted]:
    async with scripted() as found:
        yield found


async def answered(server: Scripted, number: int) -> None:
    """Wait until the server has answered that many."""
    while server.answered.total() < number:
        server.came.clear()
        await server.came.wait()


async def test_killed_and_run_again_it_ends_with_what_a_local_run_has(
    server: Scripted, other: Scripted, tmp_path: Path
) -> None:
    source = write_questions(tmp_path / "in.jsonl", 60)
    await run(server, source, tmp_path / "local.jsonl", num_samples=2)
    server.answered.clear()
    server.delay_s = other.delay_s = 0.1
    more = ("--n", "2", "--base-url", other.base_url, *RAY)
    synth = Process(server.base_url, source, tmp_path / "out.jsonl", *more)
    process = await synth.start()
    await answered(server, 15)
    process.kill()
    await process.communicate()
    journal = tmp_path / "out.journal" / "journal"
    kept = journal.read_bytes().count(b"\n")
    assert 15 <= kept < 120
    await synth.ended(0)
    assert steady(synth.output) == steady(tmp_path / "local.jsonl")
    assert journal.read_bytes().count(b"\n") == 120
    # Only what was under way when it was killed was asked twice, and at the same proxy again.
    asked = server.answered + other.answered
    assert len(asked) == 120
    assert asked.total() - 120 <= 8
    assert not server.answered.keys() & other.answered.keys()
    assert min(len(server.answered), len(other.answered)) > 30
    assert not (tmp_path / "out.journal" / "units").exists()


async def test_ctrl_c_lets_what_is_under_way_finish_and_a_local_run_goes_on(
    server: Scripted, tmp_path: Path
) -> None:
    server.delay_s = 0.3
    source = write_questions(tmp_path / "in.jsonl", 200)
    synth = Process(server.base_url, source, tmp_path / "out.jsonl", *RAY)
    process = await synth.start(start_new_session=True)
    await answered(server, 10)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, err = await process.communicate()
    assert process.returncode == 1
    done = server.answered.total()
    assert f"motab: stopped; {done} trajectories are done" in err.decode()
    assert server.num_requests == done < 200
    server.delay_s = 0
    await run(server, source, synth.output)
    assert units(records(synth.output)) == [(f"q{i}", 0) for i in range(200)]
    assert set(server.answered.values()) == {1}


async def test_a_proxy_that_goes_down_costs_nothing_but_attempts(
    server: Scripted, other: Scripted, tmp_path: Path
) -> None:
    met: Counter[str] = Counter()

    def down(body: dict[str, Any], _number: int) -> Fault:
        met[body["messages"][0]["content"]] += 1
        return Fault(0)

    def refuse(body: dict[str, Any], _number: int) -> Fault | None:
        hard = body["messages"][0]["content"] == "What is 3?"
        return Fault(400, {"error": {"message": "too hard"}}) if hard else None

    server.script, other.script = refuse, down
    source = write_questions(tmp_path / "in.jsonl", 20)
    more = ("--base-url", other.base_url, "--progress-file", tmp_path / "progress.jsonl", *RAY)
    synth = Process(server.base_url, source, tmp_path / "out.jsonl", *more)
    await synth.ended(0)
    found = {record.id: record.attempts for record in records(synth.output)}
    assert found.keys() == {f"q{i}" for i in range(20) if i != 3}
    assert {name for name, attempts in found.items() if attempts > 1} >= {
        f"q{question.split()[-1].rstrip('?')}" for question in met if question != "What is 3?"
    }
    assert met
    (failed,) = lines(tmp_path / "out.failed.jsonl")
    assert (failed["id"], failed["error"]["message"]) == ("q3", "too hard")
    last = lines(tmp_path / "progress.jsonl")[-1]
    assert (last["done"], last["failed"], last["total"]) == (19, 1, 20)
    assert last["errors"] == {"permanent": 1, "transient": sum(met.values())}


async def test_what_ends_the_run_on_one_worker_ends_it(server: Scripted, tmp_path: Path) -> None:
    error = {"message": "must be below 1", "param": "motab.gamma"}
    server.script = lambda _body, _number: Fault(400, {"error": error})
    source = write_questions(tmp_path / "in.jsonl", 100)
    synth = Process(server.base_url, source, tmp_path / "out.jsonl", *RAY)
    said = (await synth.ended(1)).splitlines()[-1]
    assert said == "motab: the server refuses the run: HTTP 400: must be below 1"
    assert server.num_requests <= 8


async def test_a_cluster_that_is_not_there_is_told(server: Scripted, tmp_path: Path) -> None:
    source = write_questions(tmp_path / "in.jsonl", 1)
    more = ("--executor", "ray", "--ray-address", "127.0.0.1:1")
    said = await Process(server.base_url, source, tmp_path / "out.jsonl", *more).ended(1)
    assert said.splitlines()[-1].startswith("motab: no Ray cluster at 127.0.0.1:1: ")
    assert server.num_requests == 0
