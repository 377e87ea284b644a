"""Tests runs of `motab synth` whose rows or server fail."""

import logging
from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import pytest

from synth_client.files.journal import Entry
from synth_client.runs.outputs import Totals
from tests.support.synth_client.openai_server import Fault, Scripted
from tests.support.synth_client.runs import failure, lines, records, run, units, write_questions


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


@pytest.mark.parametrize(
    ("status", "code"),
    [(502, "upstream_refused"), (400, "context_length_exceeded"), (500, "tokenizer_failed")],
)
@pytest.mark.parametrize("is_first", [True, False])
async def test_a_run_half_of_which_is_refused_asks_each_question_once(
    server: Scripted,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    status: int,
    code: str,
    *,
    is_first: bool,
) -> None:
    """So it takes the time of the good half: a refusal holds up nothing, and none is repeated."""
    refused = [f"What is {i}?" for i in (range(24) if is_first else range(0, 48, 2))]

    def script(body: dict[str, Any], _number: int) -> Fault | None:
        if body["messages"][-1]["content"] not in refused:
            return None
        return Fault(status, {"error": {"message": "refused", "code": code}})

    server.script = script
    source = write_questions(tmp_path / "in.jsonl", 48)
    assert await run(server, source, tmp_path / "out.jsonl") == Totals(24, 24)
    assert server.num_requests == 48
    assert "asking one at a time" not in caplog.text
    failed = lines(tmp_path / "out.failed.jsonl")
    assert {(row["error"]["kind"], row["attempts"]) for row in failed} == {("permanent", 1)}


async def test_a_malformed_answer_is_one_rows(
    server: Scripted, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def script(body: dict[str, Any], _number: int) -> Fault | None:
        if body["messages"][-1]["content"] not in {f"What is {i}?" for i in range(6)}:
            return None
        return Fault(502, {"error": {"message": "no score", "code": "upstream_malformed"}})

    server.script = script
    source = write_questions(tmp_path / "in.jsonl", 12)
    assert await run(server, source, tmp_path / "out.jsonl") == Totals(6, 6)
    assert server.num_requests == 6 * 3 + 6
    assert "asking one at a time" not in caplog.text
