"""Whole runs of `motab synth` against a scripted server, killed and resumed."""

import asyncio
import os
import random
import resource
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import orjson
import pytest

from synth_client.record import Record, read_records
from tests.integration.openai_server import Fault, Scripted, scripted

ROOT = Path(__file__).parents[2]
ENV = {k: v for k, v in os.environ.items() if k not in {"FORCE_COLOR", "TERM"}} | {"COLUMNS": "400"}
MOTAB = [sys.executable, "-c", "from proxy.cli import main; main()", "synth"]


@pytest.fixture
async def server() -> AsyncIterator[Scripted]:
    async with scripted() as found:
        yield found


def write_questions(path: Path, number: int) -> Path:
    path.write_bytes(
        b"".join(
            orjson.dumps({"id": f"q{i}", "question": f"What is {i}?", "answer": str(i % 7)}) + b"\n"
            for i in range(number)
        )
    )
    return path


class Synth:
    """`motab synth` as a process of its own."""

    def __init__(self, server: Scripted, source: Path, output: Path, *more: str | Path) -> None:
        self.output = output
        self._arguments = [
            *MOTAB,
            *(str(source), "--output", str(output), "--base-url", server.base_url),
            *("--model", "motab/pair", "--seed", "7", *map(str, more)),
        ]

    async def start(self, **how: Any) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *self._arguments, cwd=ROOT, env=ENV, stdout=-1, stderr=-1, **how
        )

    async def run(self, **how: Any) -> tuple[int, str, str]:
        process = await self.start(**how)
        out, err = await process.communicate()
        assert process.returncode is not None
        return process.returncode, out.decode(), err.decode()

    async def done(self) -> str:
        """What it says when it succeeds."""
        code, out, err = await self.run()
        assert code == 0, err
        return out

    async def failure(self, code: int = 1, **how: Any) -> str:
        """What it says when it fails, in one line after the log's."""
        found, out, err = await self.run(**how)
        assert (found, out) == (code, ""), err
        return err.strip().splitlines()[-1]


def records(path: Path) -> list[Record]:
    return list(read_records(path))


def lines(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


def steady(path: Path) -> list[dict[str, Any]]:
    """The records without what differs from run to run."""
    varying = {"seconds", "attempts"}
    return [{k: v for k, v in line.items() if k not in varying} for line in lines(path)]


def units(found: Iterable[Record]) -> list[tuple[str, int]]:
    return [(record.id, record.sample) for record in found]


async def test_every_sample_of_every_row_is_there_in_the_order_of_the_input(
    server: Scripted, tmp_path: Path
) -> None:
    server.delay_s = 0.01
    source = write_questions(tmp_path / "in.jsonl", 20)
    said = await Synth(server, source, tmp_path / "out.jsonl", "--n", "3").done()
    found = records(tmp_path / "out.jsonl")
    assert units(found) == [(f"q{i}", sample) for i in range(20) for sample in range(3)]
    assert {body["seed"] for body in server.bodies} == {7, 8, 9}
    assert f"60 records in {tmp_path / 'out.jsonl'}" in said
    assert not (tmp_path / "out.failed.jsonl").exists()


async def test_killed_again_and_again_it_ends_with_what_an_undisturbed_run_has(
    server: Scripted, tmp_path: Path
) -> None:
    server.delay_s = 0.03
    source = write_questions(tmp_path / "in.jsonl", 200)
    whole = Synth(server, source, tmp_path / "whole.jsonl", "--n", "2", "--concurrency", "8")
    await whole.done()
    server.answered.clear()
    killed = Synth(server, source, tmp_path / "killed.jsonl", "--n", "2", "--concurrency", "8")
    draw = random.Random(1)
    num_kills = 0
    while num_kills < 20:
        server.came.clear()
        process = await killed.start()
        asked = asyncio.create_task(server.came.wait())
        ended = asyncio.create_task(process.wait())
        await asyncio.wait({asked, ended}, return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        if ended.done():
            break
        await asyncio.sleep(draw.uniform(0, 0.15))
        process.kill()
        await process.communicate()
        await ended
        num_kills += 1
    assert num_kills >= 10
    await killed.done()
    assert steady(killed.output) == steady(whole.output)
    # Only what was under way when it was killed was asked twice.
    assert sum(server.answered.values()) - len(server.answered) <= 8 * num_kills
    assert len(server.answered) == 400


async def test_run_again_it_asks_nothing_more(server: Scripted, tmp_path: Path) -> None:
    synth = Synth(server, write_questions(tmp_path / "in.jsonl", 5), tmp_path / "out.jsonl")
    await synth.done()
    before, asked = synth.output.read_bytes(), server.num_requests
    await synth.done()
    assert (synth.output.read_bytes(), server.num_requests) == (before, asked)


async def test_more_samples_and_rows_may_be_asked_for_later(
    server: Scripted, tmp_path: Path
) -> None:
    source = write_questions(tmp_path / "in.jsonl", 4)
    await Synth(server, source, tmp_path / "out.jsonl", "--limit", "2").done()
    assert server.num_requests == 2
    await Synth(server, source, tmp_path / "out.jsonl", "--n", "2").done()
    assert server.num_requests == 8
    assert len(records(tmp_path / "out.jsonl")) == 8


async def test_another_run_is_refused_with_the_difference_until_it_starts_afresh(
    server: Scripted, tmp_path: Path
) -> None:
    source = write_questions(tmp_path / "in.jsonl", 3)
    await Synth(server, source, tmp_path / "out.jsonl").done()
    before = (tmp_path / "out.jsonl").read_bytes()
    other = Synth(server, source, tmp_path / "out.jsonl", "--param", "base_threshold=0.4")
    said = await other.failure()
    assert 'params is {} there and {"base_threshold":0.4} here' in said
    assert (tmp_path / "out.jsonl").read_bytes() == before
    fresh = ("--param", "base_threshold=0.4", "--fresh")
    await Synth(server, source, tmp_path / "out.jsonl", *fresh).done()
    assert (tmp_path / "out.jsonl").read_bytes() != before
    assert (tmp_path / "out.journal" / "old-1" / "out.jsonl").read_bytes() == before


async def test_a_file_that_is_in_the_way_is_not_overwritten(
    server: Scripted, tmp_path: Path
) -> None:
    (tmp_path / "out.jsonl").write_text("dear to me", encoding="utf-8")
    synth = Synth(server, write_questions(tmp_path / "in.jsonl", 1), tmp_path / "out.jsonl")
    assert "exists and has no journal" in await synth.failure()
    assert (tmp_path / "out.jsonl").read_text(encoding="utf-8") == "dear to me"


async def test_a_second_process_on_the_same_output_is_refused(
    server: Scripted, tmp_path: Path
) -> None:
    server.released.clear()
    synth = Synth(server, write_questions(tmp_path / "in.jsonl", 2), tmp_path / "out.jsonl")
    first = await synth.start()
    await server.came.wait()
    assert "another motab synth is writing it" in await synth.failure()
    server.released.set()
    await first.communicate()
    assert first.returncode == 0
    assert len(records(synth.output)) == 2


async def test_the_first_signal_lets_what_is_under_way_finish(
    server: Scripted, tmp_path: Path
) -> None:
    server.released.clear()
    source = write_questions(tmp_path / "in.jsonl", 50)
    synth = Synth(server, source, tmp_path / "out.jsonl", "--concurrency", "4")
    process = await synth.start()
    while server.num_active < 4:
        await asyncio.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    while b"finishing the 4 under way" not in await process.stderr.readline():
        pass
    server.released.set()
    _, err = await process.communicate()
    assert process.returncode == 1
    assert b"4 trajectories are done, and the same command goes on" in err
    assert server.num_requests == 4
    assert not synth.output.exists()
    await synth.done()
    assert server.num_requests == 50
    assert len(records(synth.output)) == 50


async def test_the_second_signal_stops_it_at_once(server: Scripted, tmp_path: Path) -> None:
    server.released.clear()
    synth = Synth(server, write_questions(tmp_path / "in.jsonl", 9), tmp_path / "out.jsonl")
    process = await synth.start()
    await server.came.wait()
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    while b"finishing" not in await process.stderr.readline():
        pass
    process.send_signal(signal.SIGINT)
    _, err = await asyncio.wait_for(process.communicate(), 10)
    assert process.returncode == 1
    assert b"stopped at once" in err
    assert b"Traceback" not in err


async def test_rows_that_cannot_be_asked_fail_and_the_others_go_on(
    server: Scripted, tmp_path: Path
) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(
        b'{"question": "one"}\n{"question": 2}\n{"broken\n\n{"text": "?"}\n{"problem": "six"}\n'
    )
    said = await Synth(server, source, tmp_path / "out.jsonl").done()
    assert "3 failed" in said
    assert [record.id for record in records(tmp_path / "out.jsonl")] == ["0", "4"]
    failed = lines(tmp_path / "out.failed.jsonl")
    assert [(row["id"], row["place"]) for row in failed] == [
        ("1", "line 2"),
        ("2", "line 3"),
        ("3", "line 5"),
    ]
    assert {row["error"]["kind"] for row in failed} == {"bad_row"}


async def test_a_question_that_stands_twice_is_asked_once_and_has_both_records(
    server: Scripted, tmp_path: Path
) -> None:
    source = tmp_path / "in.jsonl"
    rows = [{"id": "a", "question": "same", "answer": "1"}, {"id": "b", "question": "same"}]
    source.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    await Synth(server, source, tmp_path / "out.jsonl").done()
    first, second = records(tmp_path / "out.jsonl")
    assert server.num_requests == 1
    assert (first.id, first.answer, second.id, second.answer) == ("a", "1", "b", None)
    assert (first.correct, second.correct) == (False, None)
    assert first.output == second.output


async def test_a_refused_question_fails_alone_and_is_asked_again_by_the_next_run(
    server: Scripted, tmp_path: Path
) -> None:
    refusal = {"error": {"message": "too long", "code": "context_length_exceeded"}}
    server.script = lambda body, _: (
        Fault(400, refusal) if "3?" in body["messages"][0]["content"] else None
    )
    synth = Synth(server, write_questions(tmp_path / "in.jsonl", 6), tmp_path / "out.jsonl")
    assert "1 failed" in await synth.done()
    assert [record.id for record in records(synth.output)] == ["q0", "q1", "q2", "q4", "q5"]
    (failed,) = lines(tmp_path / "out.failed.jsonl")
    assert (failed["id"], failed["sample"], failed["attempts"]) == ("q3", 0, 1)
    assert failed["error"] == {
        "kind": "permanent",
        "message": "too long",
        "status": 400,
        "type": None,
        "param": None,
        "code": "context_length_exceeded",
    }
    server.script = lambda _body, _number: None
    await synth.done()
    assert server.num_requests == 7
    assert len(records(synth.output)) == 6
    assert not (tmp_path / "out.failed.jsonl").exists()


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (Fault(401, {"error": {"message": "wrong key"}}), "HTTP 401: wrong key"),
        (Fault(404, {"error": {"message": "no such model"}}), "HTTP 404: no such model"),
        (
            Fault(400, {"error": {"message": "gama is not known", "param": "motab.gama"}}),
            "HTTP 400: gama is not known",
        ),
    ],
)
async def test_what_every_question_would_be_answered_ends_the_run_at_once(
    fault: Fault, sentence: str, server: Scripted, tmp_path: Path
) -> None:
    server.script = lambda _body, number: fault if number >= 3 else None
    source = write_questions(tmp_path / "in.jsonl", 100)
    synth = Synth(server, source, tmp_path / "out.jsonl", "--concurrency", "1")
    assert (await synth.failure()) == f"motab: the server refuses the run: {sentence}"
    assert server.num_requests == 4
    server.script = lambda _body, _number: None
    await synth.done()
    assert server.num_requests == 101


async def test_a_server_that_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    source = write_questions(tmp_path / "in.jsonl", 1)
    gone = Scripted()
    gone.base_url = "http://127.0.0.1:9/v1"
    said = await Synth(gone, source, tmp_path / "out.jsonl").failure()
    assert said.startswith("motab: no answer from http://127.0.0.1:9/v1/: ")


async def test_any_openai_compatible_server_gives_plain_records(
    server: Scripted, tmp_path: Path
) -> None:
    source = write_questions(tmp_path / "in.jsonl", 2)
    await Synth(server, source, tmp_path / "out.jsonl", "--plain").done()
    assert all("motab" not in body for body in server.bodies)
    record, _ = records(tmp_path / "out.jsonl")
    assert (record.method, record.params, record.steps) == ("plain", {}, ())
    assert (record.models.student, record.models.teacher) == (None, "served-name")
    assert [span.role for span in record.spans] == ["teacher"]
    assert record.usage.motab.teacher_tokens == record.usage.completion_tokens


async def test_a_proxy_with_other_settings_than_before_is_noticed(
    server: Scripted, tmp_path: Path
) -> None:
    source = write_questions(tmp_path / "in.jsonl", 4)
    synth = Synth(server, source, tmp_path / "out.jsonl", "--limit", "2")
    await synth.done()
    journal = tmp_path / "out.journal" / "journal"
    # As if the records so far had come of another teacher.
    from synth_client.journal import Entry

    changed = []
    for line in journal.read_bytes().splitlines():
        _, _, key, _, content = line.split(b" ", 4)
        other = content.replace(b'"teacher":"big"', b'"teacher":"small"')
        assert other != content
        changed.append(Entry(bytes.fromhex(key.decode()), "R", other).line())
    journal.write_bytes(b"".join(changed))
    said = await Synth(server, source, tmp_path / "out.jsonl").failure()
    assert "models.teacher was 'small' and is 'big'" in said


async def test_a_full_disk_is_told_and_costs_nothing_that_was_done(
    server: Scripted, tmp_path: Path
) -> None:
    source = write_questions(tmp_path / "in.jsonl", 60)
    synth = Synth(server, source, tmp_path / "out.jsonl", "--concurrency", "2")

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    said = await synth.failure(preexec_fn=small_files)
    assert said.startswith(f"motab: {tmp_path / 'out.journal' / 'journal'}: ")
    journal = (tmp_path / "out.journal" / "journal").read_bytes()
    kept = journal.count(b"\n")
    assert kept > 5
    assert journal.endswith(b"\n")
    asked = server.num_requests
    await synth.done()
    assert server.num_requests - asked == 60 - kept
    assert len(records(synth.output)) == 60


async def test_progress_goes_to_the_log_and_to_a_file(server: Scripted, tmp_path: Path) -> None:
    source = write_questions(tmp_path / "in.jsonl", 8)
    progress = tmp_path / "progress.jsonl"
    more = ("--progress-file", progress, "--price", "teacher=2", "--n", "2")
    code, _, err = await Synth(server, source, tmp_path / "out.jsonl", *more).run()
    assert code == 0
    last = lines(progress)[-1]
    assert (last["done"], last["total"], last["failed"], last["in_flight"]) == (16, 16, 0, 0)
    found = records(tmp_path / "out.jsonl")
    num_breached = sum(record.breach is not None for record in found)
    assert 0 < num_breached < 16
    assert last["breach_rate"] == num_breached / 16
    assert last["mean_bifurcation"] == 2
    assert last["cost"] == pytest.approx(16 * 20 * 2 / 1e6)
    assert "trajectories: 16 of 16, 0 failed" in err


async def test_faults_of_every_kind_lose_nothing_and_double_nothing(
    server: Scripted, tmp_path: Path
) -> None:
    met: Counter[str] = Counter()
    full = {"error": {"message": "full"}}
    faults = [
        Fault(429, full, "0"),
        Fault(500, full),
        Fault(503, full, "0.1"),
        Fault(0),
        Fault(200, {"choices": []}),
        Fault(502),
    ]

    def script(body: dict[str, Any], _number: int) -> Fault | None:
        question = body["messages"][0]["content"]
        met[question] += 1
        index = int(question.split()[-1].rstrip("?"))
        return faults[index % 12] if index % 12 < 6 and met[question] == 1 else None

    server.script = script
    source = write_questions(tmp_path / "in.jsonl", 60)
    await Synth(server, source, tmp_path / "out.jsonl", "--concurrency", "10").done()
    found = records(tmp_path / "out.jsonl")
    assert units(found) == [(f"q{i}", 0) for i in range(60)]
    assert Counter(record.attempts for record in found) == {1: 30, 2: 30}
    assert set(server.answered.values()) == {1}
