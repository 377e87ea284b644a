"""Whole runs of `motab synth` against a scripted server, killed and resumed."""

import asyncio
import io
import logging
import os
import random
import resource
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from rich.console import Console
from typer.testing import CliRunner

from motab.cli import app
from synth_client.errors import ClientError
from synth_client.files.journal import Entry
from synth_client.files.record_file import read_records
from synth_client.questions.dataset import open_dataset
from synth_client.questions.question import Synthesis
from synth_client.record import Record
from synth_client.runs.outputs import Totals
from synth_client.runs.synthesise import Run, synthesise
from synth_client.training_data.filters import Filters
from tests.support.openai_server import FULL, Fault, Scripted, scripted
from tests.support.paths import ROOT

# What a user's terminal may set is taken out: a pipe has 80 columns, and no line may be cut there.
ENV = {k: v for k, v in os.environ.items() if k not in {"COLUMNS", "FORCE_COLOR", "TERM"}}


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


SYNTHESIS = Synthesis(model="motab/pair", seed=7)


async def run(
    server: Scripted,
    source: Path,
    output: Path,
    *,
    synthesis: Synthesis = SYNTHESIS,
    limit: int | None = None,
    **how: Any,
) -> Totals:
    """A run inside this event loop."""
    asked = Run(
        dataset=open_dataset(str(source), limit=limit),
        output=output,
        base_urls=(server.base_url,),
        synthesis=synthesis,
        **{"verify": "number", **how},
    )
    return await synthesise(asked, Console(file=io.StringIO()))


async def failure(server: Scripted, source: Path, output: Path, **how: Any) -> str:
    """What a run says that fails."""
    with pytest.raises(ClientError) as caught:
        await run(server, source, output, **how)
    return str(caught.value)


class Process:
    """`motab synth` as a process of its own."""

    def __init__(self, base_url: str, source: Path, output: Path, *more: str | Path) -> None:
        self.output = output
        self._arguments = [
            *(sys.executable, "-m", "motab", "synth"),
            *(str(source), "--output", str(output), "--base-url", base_url),
            *("--model", "motab/pair", "--seed", "7", "--verify", "number", *map(str, more)),
        ]

    async def start(self, **how: Any) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *self._arguments, cwd=ROOT, env=ENV, stdout=-1, stderr=-1, **how
        )

    def peak_memory(self) -> int:
        """Runs it to its end; the most memory that it had, in KiB."""
        with subprocess.Popen(self._arguments, cwd=ROOT, env=ENV, stdout=-3, stderr=-3) as process:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        return usage.ru_maxrss

    async def ended(self, code: int, **how: Any) -> str:
        """What it says: where it succeeds, on the one stream, where it fails, on the other."""
        process = await self.start(**how)
        out, err = await process.communicate()
        assert process.returncode == code, err.decode()
        return (err if code else out).decode()


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
    totals = await run(server, source, tmp_path / "out.jsonl", num_samples=3)
    found = records(tmp_path / "out.jsonl")
    assert units(found) == [(f"q{i}", sample) for i in range(20) for sample in range(3)]
    assert {body["seed"] for body in server.bodies} == {7, 8, 9}
    assert totals == Totals(60, 0)
    assert not (tmp_path / "out.failed.jsonl").exists()


async def test_the_command_says_what_there_is(server: Scripted, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(b'{"question": "one"}\n{"question": 2}\n')
    output = tmp_path / "runs" / "out.jsonl"
    more = ("--param", "base_threshold=0.3", "--param", "boundary=static", "--max-tokens", "9")
    said = await Process(server.base_url, source, output, *more).ended(0)
    failed = tmp_path / "runs" / "out.failed.jsonl"
    assert said == (
        f"1 record in {output}\n"
        f"1 failed: {failed} says why, and the same command tries them again\n"
    )
    (body,) = server.bodies
    assert body["motab"] == {"base_threshold": 0.3, "boundary": "static"}
    assert (body["seed"], body["max_tokens"]) == (7, 9)


@pytest.mark.parametrize(
    "more",
    [
        ("--param", "gamma"),
        ("--price", "water=3"),
        ("--price", "teacher=cheap"),
        ("--concurrency", "2", "--min-concurrency", "3"),
        ("--plain", "--param", "gamma=1"),
        ("--base-url", "localhost:8000"),
        ("--output", "."),
        ("--n", "0"),
    ],
)
def test_options_that_make_no_sense_are_refused(more: tuple[str, ...], tmp_path: Path) -> None:
    source = write_questions(tmp_path / "in.jsonl", 1)
    asked = ("--output", str(tmp_path / "out.jsonl"), "--base-url", "http://h/v1", "--model", "m")
    refused = CliRunner().invoke(app, ["synth", str(source), *asked, *more])
    assert refused.exit_code == 2
    assert more[0] in refused.output
    assert list(tmp_path.iterdir()) == [source]


def test_the_input_is_not_taken_for_the_output(tmp_path: Path) -> None:
    source = write_questions(tmp_path / "in.jsonl", 1)
    asked = ("--output", str(source), "--base-url", "http://h/v1", "--model", "m", "--fresh")
    refused = CliRunner().invoke(app, ["synth", str(source), *asked])
    assert (refused.exit_code, list(tmp_path.iterdir())) == (2, [source])


@pytest.mark.timeout(400)
async def test_killed_again_and_again_it_ends_with_what_an_undisturbed_run_has(
    server: Scripted, tmp_path: Path
) -> None:
    source = write_questions(tmp_path / "in.jsonl", 200)
    await run(server, source, tmp_path / "whole.jsonl", num_samples=2)
    server.answered.clear()
    server.delay_s = 0.03
    killed = Process(
        server.base_url, source, tmp_path / "out.jsonl", "--n", "2", "--concurrency", "8"
    )
    draw = random.Random(1)
    for _ in range(20):
        server.came.clear()
        process = await killed.start()
        await server.came.wait()
        await asyncio.sleep(draw.uniform(0, 0.15))
        process.kill()
        await process.communicate()
        assert process.returncode == -signal.SIGKILL
    await killed.ended(0)
    assert steady(killed.output) == steady(tmp_path / "whole.jsonl")
    # Only what was under way when it was killed was asked twice.
    assert sum(server.answered.values()) - len(server.answered) <= 8 * 20
    assert len(server.answered) == 400


async def test_run_again_it_asks_nothing_more(server: Scripted, tmp_path: Path) -> None:
    source, output = write_questions(tmp_path / "in.jsonl", 5), tmp_path / "out.jsonl"
    await run(server, source, output)
    before, asked = output.read_bytes(), server.num_requests
    await run(server, source, output)
    assert (output.read_bytes(), server.num_requests) == (before, asked)


async def test_what_is_all_done_needs_no_server(server: Scripted, tmp_path: Path) -> None:
    source, output = write_questions(tmp_path / "in.jsonl", 5), tmp_path / "out.jsonl"
    await run(server, source, output)
    output.unlink()
    gone = Scripted()
    gone.base_url = "http://127.0.0.1:9/v1"
    assert await run(gone, source, output) == Totals(5, 0)


async def test_more_samples_and_rows_may_be_asked_for_later(
    server: Scripted, tmp_path: Path
) -> None:
    source = write_questions(tmp_path / "in.jsonl", 4)
    await run(server, source, tmp_path / "out.jsonl", limit=2)
    assert server.num_requests == 2
    await run(server, source, tmp_path / "out.jsonl", num_samples=2)
    assert server.num_requests == 8
    assert len(records(tmp_path / "out.jsonl")) == 8


async def test_another_run_is_refused_with_the_difference_until_it_starts_afresh(
    server: Scripted, tmp_path: Path
) -> None:
    source, output = write_questions(tmp_path / "in.jsonl", 3), tmp_path / "out.jsonl"
    await run(server, source, output)
    before = output.read_bytes()
    other = replace(SYNTHESIS, params={"base_threshold": 0.4})
    said = await failure(server, source, output, synthesis=other)
    assert 'params is {} there and {"base_threshold":0.4} here' in said
    assert output.read_bytes() == before
    for number in (1, 2):
        asked = server.num_requests
        await run(server, source, output, synthesis=other, fresh=True)
        assert server.num_requests == asked + 3
        assert (tmp_path / "out.journal" / f"old-{number}" / "journal").exists()
    assert output.read_bytes() != before
    assert (tmp_path / "out.journal" / "old-1" / "out.jsonl").read_bytes() == before


async def test_a_run_that_has_done_nothing_yet_may_become_another(
    server: Scripted, tmp_path: Path
) -> None:
    source, output = write_questions(tmp_path / "in.jsonl", 3), tmp_path / "out.jsonl"
    server.script = lambda body, _: (
        None if body["model"] == "motab/pair" else Fault(404, {"error": {"message": "no model"}})
    )
    typo = replace(SYNTHESIS, model="motab/pear")
    assert "no model" in await failure(server, source, output, synthesis=typo)
    assert await run(server, source, output) == Totals(3, 0)
    assert 'model is "motab/pair" there' in await failure(server, source, output, synthesis=typo)


async def test_a_file_that_is_in_the_way_is_not_overwritten(
    server: Scripted, tmp_path: Path
) -> None:
    output = tmp_path / "out.jsonl"
    output.write_text("dear to me", encoding="utf-8")
    source = write_questions(tmp_path / "in.jsonl", 1)
    assert "exists and has no journal" in await failure(server, source, output)
    assert output.read_text(encoding="utf-8") == "dear to me"


async def test_a_second_process_on_the_same_output_is_refused(
    server: Scripted, tmp_path: Path
) -> None:
    server.released.clear()
    source = write_questions(tmp_path / "in.jsonl", 2)
    synth = Process(server.base_url, source, tmp_path / "out.jsonl")
    first = await synth.start()
    await server.came.wait()
    assert "another motab synth is writing it" in await synth.ended(1)
    server.released.set()
    await first.communicate()
    assert first.returncode == 0
    assert len(records(synth.output)) == 2


async def test_the_first_signal_lets_what_is_under_way_finish(
    server: Scripted, tmp_path: Path
) -> None:
    server.released.clear()
    server.full_at = 4
    source, output = write_questions(tmp_path / "in.jsonl", 50), tmp_path / "out.jsonl"
    process = await Process(server.base_url, source, output, "--concurrency", "4").start()
    await server.is_full.wait()
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    while b"finishing the 4 under way" not in await process.stderr.readline():
        pass
    server.released.set()
    _, err = await process.communicate()
    assert process.returncode == 1
    assert b"4 trajectories are done, and the same command goes on" in err
    assert server.num_requests == 4
    assert not output.exists()
    await run(server, source, output)
    assert server.num_requests == 50
    assert len(records(output)) == 50


async def test_the_second_signal_stops_it_at_once(server: Scripted, tmp_path: Path) -> None:
    server.released.clear()
    source = write_questions(tmp_path / "in.jsonl", 9)
    process = await Process(server.base_url, source, tmp_path / "out.jsonl").start()
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
    assert await run(server, source, tmp_path / "out.jsonl") == Totals(2, 3)
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
    await run(server, source, tmp_path / "out.jsonl")
    first, second = records(tmp_path / "out.jsonl")
    assert server.num_requests == 1
    assert (first.id, first.answer, second.id, second.answer) == ("a", "1", "b", None)
    assert (first.correct, second.correct) == (False, None)
    assert first.output == second.output


async def test_rows_with_the_same_id_are_told_and_can_be_mended_without_asking_again(
    server: Scripted, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    rows = [{"id": name, "question": f"{i}?"} for i, name in enumerate("abba")]
    source.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    await run(server, source, output, num_samples=2)
    assert "2 rows repeat an earlier id (first: 'b')" in caplog.text
    assert [record.id for record in records(output)] == list("aabbbbaa")
    for i, row in enumerate(rows):
        row["id"] = str(i)
    source.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    caplog.clear()
    await run(server, source, output, num_samples=2)
    assert (server.num_requests, caplog.text) == (8, "")
    assert [record.id for record in records(output)] == list("00112233")


async def test_an_outage_is_told_when_it_begins_and_when_it_ends(
    server: Scripted, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "synth_client")
    server.script = lambda _body, number: Fault(502) if number in range(8, 17) else None
    source = write_questions(tmp_path / "in.jsonl", 40)
    await run(server, source, tmp_path / "out.jsonl", concurrency=8)
    assert caplog.text.count("asking one at a time until the server is back") == 1
    assert caplog.text.count("the server is back after") == 1
    assert len(records(tmp_path / "out.jsonl")) == 40


async def test_a_refused_question_fails_alone_and_is_asked_again_by_the_next_run(
    server: Scripted, tmp_path: Path
) -> None:
    refusal = {"error": {"message": "too long", "code": "context_length_exceeded"}}
    server.script = lambda body, _: (
        Fault(400, refusal) if "3?" in body["messages"][0]["content"] else None
    )
    source, output = write_questions(tmp_path / "in.jsonl", 6), tmp_path / "out.jsonl"
    assert await run(server, source, output) == Totals(5, 1)
    assert [record.id for record in records(output)] == ["q0", "q1", "q2", "q4", "q5"]
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
    await run(server, source, output)
    assert server.num_requests == 7
    assert len(records(output)) == 6
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
    said = await failure(server, source, tmp_path / "out.jsonl", concurrency=1)
    assert said == f"the server refuses the run: {sentence}"
    assert server.num_requests == 4
    server.script = lambda _body, _number: None
    await run(server, source, tmp_path / "out.jsonl")
    assert server.num_requests == 101


async def test_a_server_that_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    source = write_questions(tmp_path / "in.jsonl", 1)
    gone = Scripted()
    gone.base_url = "http://127.0.0.1:9/v1"
    said = await failure(gone, source, tmp_path / "out.jsonl")
    assert said == (
        "no answer from http://127.0.0.1:9/v1: Connection refused; is the server running there?"
    )


async def test_any_openai_compatible_server_gives_plain_records(
    server: Scripted, tmp_path: Path
) -> None:
    source = write_questions(tmp_path / "in.jsonl", 2)
    plain = Synthesis(model="any", plain=True)
    await run(server, source, tmp_path / "out.jsonl", synthesis=plain)
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
    await run(server, source, tmp_path / "out.jsonl", limit=2)
    journal = tmp_path / "out.journal" / "journal"
    # As if the records so far had come of another teacher.
    changed = []
    for line in journal.read_bytes().splitlines():
        _, _, key, _, content = line.split(b" ", 4)
        other = content.replace(b'"teacher":"big"', b'"teacher":"small"')
        assert other != content
        changed.append(Entry(bytes.fromhex(key.decode()), "R", other).line())
    journal.write_bytes(b"".join(changed))
    said = await failure(server, source, tmp_path / "out.jsonl")
    assert "models.teacher was 'small' and is 'big'" in said


async def test_a_full_disk_is_told_and_costs_nothing_that_was_done(
    server: Scripted, tmp_path: Path
) -> None:
    source = write_questions(tmp_path / "in.jsonl", 60)
    synth = Process(server.base_url, source, tmp_path / "out.jsonl", "--concurrency", "2")

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    told, said = (await synth.ended(1, preexec_fn=small_files)).splitlines()[-2:]
    assert said == f"motab: {tmp_path / 'out.journal' / 'journal'}: File too large"
    journal = (tmp_path / "out.journal" / "journal").read_bytes()
    kept = journal.count(b"\n")
    assert told.endswith(f"INFO {kept} trajectories are done, and the same command goes on")
    assert kept > 5
    assert journal.endswith(b"\n")
    asked = server.num_requests
    await run(server, source, synth.output)
    assert server.num_requests - asked == 60 - kept
    assert len(records(synth.output)) == 60


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
    await run(server, source, tmp_path / "out.jsonl", concurrency=10)
    found = records(tmp_path / "out.jsonl")
    assert units(found) == [(f"q{i}", 0) for i in range(60)]
    assert Counter(record.attempts for record in found) == {1: 30, 2: 30}
    assert set(server.answered.values()) == {1}


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


def verdicts(path: Path) -> list[bool | None]:
    return [record.correct for record in records(path)]


async def test_another_rule_or_answer_is_judged_without_asking_again(
    server: Scripted, tmp_path: Path
) -> None:
    source, output = write_questions(tmp_path / "in.jsonl", 3), tmp_path / "out.jsonl"
    await run(server, source, output)
    num_calls, judged = server.num_requests, verdicts(output)
    assert None not in judged
    source.write_bytes(source.read_bytes().replace(b'"answer":', b'"reference":'))
    await run(server, source, output)
    assert verdicts(output) == [None, None, None]
    write_questions(source, 3)
    await run(server, source, output, verify="choice")
    assert verdicts(output) == [None, None, None]
    assert {record.verification.rule for record in records(output) if record.verification} == {
        "choice"
    }
    await run(server, source, output)
    assert verdicts(output) == judged
    assert server.num_requests == num_calls


async def test_what_a_filter_drops_is_in_a_file_of_its_own_and_comes_back_without_it(
    server: Scripted, tmp_path: Path
) -> None:
    source, output = write_questions(tmp_path / "in.jsonl", 20), tmp_path / "out.jsonl"
    dropped = tmp_path / "out.dropped.jsonl"
    await run(server, source, output)
    num_calls, everything = server.num_requests, records(output)
    totals = await run(server, source, output, filters=Filters(["breach"]))
    strayed = [record for record in everything if record.breach is not None]
    assert 0 < len(strayed) < 20
    assert (totals.num_records, dict(totals.kept.dropped)) == (
        len(strayed),
        {"breach": 20 - len(strayed)},
    )
    assert records(output) == strayed
    assert records(dropped) == [record for record in everything if record.breach is None]
    await run(server, source, output)
    assert records(output) == everything
    assert not dropped.exists()
    assert server.num_requests == num_calls


async def test_a_rule_that_cannot_be_loaded_ends_the_run_before_anything_is_asked(
    server: Scripted, tmp_path: Path
) -> None:
    source = write_questions(tmp_path / "in.jsonl", 3)
    said = await failure(server, source, tmp_path / "out.jsonl", verify="no_such_module:judge")
    assert said.startswith("the rule no_such_module:judge cannot be loaded: ModuleNotFoundError")
    assert server.num_requests == 0
