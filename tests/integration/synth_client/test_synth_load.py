"""Tests how many requests `motab synth` keeps under way, and what it says of them."""

import asyncio
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from synth_client.runs.outputs import Totals
from tests.support.synth_client.openai_server import FULL, Scripted
from tests.support.synth_client.runs import Process, lines, records, run, write_questions


async def test_progress_goes_to_the_log_and_to_a_file(
    server: Scripted, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "synth_client")
    source = write_questions(tmp_path / "in.jsonl", 8)
    progress = tmp_path / "progress.jsonl"
    output = tmp_path / "out.jsonl"
    how: dict[str, Any] = {"num_samples": 2, "progress_file": progress}
    how["prices"] = {"teacher": 2.0}
    await run(server, source, output, **how)
    last = lines(progress)[-1]
    assert (last["done"], last["total"], last["failed"], last["in_flight"]) == (16, 16, 0, 0)
    found = records(output)
    num_breached = sum(record.breach is not None for record in found)
    assert 0 < num_breached < 16
    assert last["breach_rate"] == num_breached / 16
    assert last["mean_bifurcation"] == 2
    assert last["cost"] == pytest.approx(16 * 20 * 2 / 1e6)
    assert "trajectories: 16 of 16, 0 failed" in caplog.text


async def test_concurrency_settles_at_what_the_server_takes(
    server: Scripted, tmp_path: Path
) -> None:
    server.capacity, server.delay_s, server.keeps_bodies = 40, 0.05, False
    source = write_questions(tmp_path / "in.jsonl", 3000)
    progress = tmp_path / "progress.jsonl"
    how: dict[str, Any] = {"concurrency": 400, "progress_file": progress}
    await run(server, source, tmp_path / "out.jsonl", **how)
    found = [line["concurrency"] for line in lines(progress)]
    levels = found[len(found) // 2 :]
    assert len(levels) > 2
    assert all(34 <= level <= 46 for level in levels), levels
    assert server.most_active == 40
    # Above the level one more is tried now and then; a refusal costs one attempt.
    assert server.statuses[429] < 300
    assert server.statuses[200] == 3000


async def test_one_burst_of_refusals_is_one_cut(server: Scripted, tmp_path: Path) -> None:
    def script(_body: dict[str, Any], number: int) -> None:
        if number == 300:  # by then the limit is at the ceiling
            server.released.clear()

    server.script, server.delay_s, server.full_at, server.held = script, 0.02, 40, FULL
    source = write_questions(tmp_path / "in.jsonl", 500)
    progress = tmp_path / "progress.jsonl"
    how: dict[str, Any] = {"concurrency": 40, "progress_file": progress}
    running = asyncio.create_task(run(server, source, tmp_path / "out.jsonl", **how))
    await server.is_full.wait()
    server.released.set()
    assert await running == Totals(500, 0)
    assert server.statuses == {200: 500, 429: 40}
    last = lines(progress)[-1]
    assert last["cuts"] == 1
    assert 36 <= last["concurrency"] <= 40


async def test_thousands_of_rows_at_a_thousand_at_a_time_are_all_there_once(
    server: Scripted, tmp_path: Path
) -> None:
    server.full_at, server.keeps_bodies = 1000, False
    source = write_questions(tmp_path / "in.jsonl", 5000)
    peaks = []
    for limit in ("1500", "5000"):
        server.released.clear()
        server.is_full.clear()
        more = ("--concurrency", "1000", "--min-concurrency", "1000", "--limit", limit)
        synth = Process(server.base_url, source, tmp_path / f"{limit}.jsonl", *more)
        peak = asyncio.create_task(asyncio.to_thread(synth.peak_memory))
        await server.is_full.wait()
        server.released.set()
        peaks.append(await peak)
    assert server.most_active == 1000
    assert Counter(record.id for record in records(tmp_path / "5000.jsonl")) == Counter(
        f"q{i}" for i in range(5000)
    )
    assert set(server.answered.values()) <= {1, 2}  # once for each of the two outputs
    assert peaks[1] < 1.15 * peaks[0], peaks
