"""Tests `motab serve --records FILE`: several workers, kills, and files that cannot be written."""

import asyncio
import json
import time
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest

from synth_client.files.record_file import read_records
from tests.support.patience import PATIENCE_S
from tests.support.proxy.workers import REQUEST, Served, clients, failure, motab
from tests.support.replay import Replay
from trajectory_records.record import Record

Answers = list[str]
"""The ids of answers that a client has got."""


async def ask(client: httpx.AsyncClient, served: Served, num: int) -> Answers:
    """Ask one question after the other, until the server is gone."""
    found: Answers = []
    for _ in range(num):
        try:
            response = await client.post(f"{served.url}/v1/completions", json=REQUEST)
        except httpx.TransportError:
            break
        assert response.status_code == 200, response.text
        found.append(response.json()["id"])
    return found


async def ask_all(stack: AsyncExitStack, served: Served, num: int) -> Answers:
    asking = await clients(stack, 16)
    found = await asyncio.gather(*(ask(client, served, num) for client in asking))
    return [answer for answers in found for answer in answers]


def all_records(path: Path) -> list[Record]:
    return [record for part in path.parent.glob("r*.jsonl") for record in read_records(part)]


def responses(path: Path) -> list[str | None]:
    return [record.response_id for record in all_records(path)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out" / "r.jsonl"


@pytest.mark.parametrize("num", [1, 2])
async def test_every_answer_of_every_worker_has_one_record(
    llama: Replay, tmp_path: Path, path: Path, num: int
) -> None:
    async with (
        motab(llama, tmp_path, "--records", str(path), num=num) as served,
        AsyncExitStack() as stack,
    ):
        answers = await ask_all(stack, served, 5)
    assert len(answers) == 16 * 5
    assert sorted(map(str, responses(path))) == sorted(answers)
    assert len({record.id for record in all_records(path)}) == len(answers)


async def test_workers_share_the_files_of_which_each_has_its_size(
    llama: Replay, tmp_path: Path, path: Path
) -> None:
    size = 10_000
    # The command's file replaces the configuration's, whose size stays.
    records = {"file": str(tmp_path / "other.jsonl"), "rotate_mb": size / 1e6}
    async with (
        motab(llama, tmp_path, "--records", str(path), records=records) as served,
        AsyncExitStack() as stack,
    ):
        answers = await ask_all(stack, served, 5)
    assert sorted(map(str, responses(path))) == sorted(answers)
    parts = sorted(path.parent.glob("r.0*.jsonl"))
    assert [part.name for part in parts] == [f"r.{n:06}.jsonl" for n in range(1, len(parts) + 1)]
    assert len(parts) > 2
    assert all(size / 2 < part.stat().st_size <= size for part in parts)


async def run_and_kill(llama: Replay, folder: Path, path: Path) -> Answers:
    """Ask until the server has given some answers, and kill it and its workers."""
    async with (
        motab(llama, folder, "--records", str(path)) as served,
        AsyncExitStack() as stack,
    ):
        asking = asyncio.create_task(ask_all(stack, served, 10_000))
        await asyncio.to_thread(wait_until_larger, path)
        for worker in served.workers():
            worker.kill()
        served.process.kill()
        return await asking


def wait_until_larger(path: Path) -> None:
    """Return when some more records are in the file."""
    begun, until = size_of(path), time.monotonic() + PATIENCE_S
    while size_of(path) < begun + 30_000:
        assert time.monotonic() < until
        time.sleep(0.01)


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


async def test_after_kills_every_answer_has_its_record_and_the_file_continues(
    llama: Replay, tmp_path: Path, path: Path
) -> None:
    answers: Answers = []
    for _ in range(2):
        answers += await run_and_kill(llama, tmp_path, path)
        found = responses(path)
        assert set(answers) <= set(found)
        assert len(set(found)) == len(found)


async def test_a_killed_worker_costs_no_record_of_another(
    llama: Replay, tmp_path: Path, path: Path
) -> None:
    async with (
        motab(llama, tmp_path, "--records", str(path)) as served,
        AsyncExitStack() as stack,
    ):
        asking = asyncio.create_task(ask_all(stack, served, 100))
        await asyncio.to_thread(wait_until_larger, path)
        served.workers()[0].kill()
        answers = await asking
    found = responses(path)
    assert set(answers) <= set(found)
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("num", [1, 2])
async def test_a_file_that_cannot_be_written_ends_the_start(
    llama: Replay, tmp_path: Path, num: int
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    async with motab(llama, tmp_path, "--records", str(folder), num=num, ready=False) as served:
        wanted = f"server.records: {folder} cannot be written: Is a directory\n"
        assert await failure(served) == wanted


async def test_a_file_of_something_else_ends_the_start_and_is_left_alone(
    llama: Replay, tmp_path: Path
) -> None:
    path = tmp_path / "questions.jsonl"
    content = json.dumps({"question": "How many?"}) + "\n"
    path.write_text(content)
    async with motab(llama, tmp_path, "--records", str(path), num=1, ready=False) as served:
        said = await failure(served)
        assert said.startswith(
            f"server.records: {path}, line 1: the file holds something else than records: "
        )
        assert said.endswith("; choose another file, or move this one away\n")
    assert path.read_text() == content
