"""Tests the way from a client that drops every field it does not know to training data.

All that the client keeps is text; the proxy's file of records has the rest.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import orjson
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from motab.cli import app
from proxy.backends.base import Sampling
from synth_client.files.record_file import read_records
from synth_client.questions.question import scoring_body
from synth_client.report.statistics import Statistics
from tests.support.pages import data_of
from tests.support.proxy.api import MODEL, STITCHED, A, B, over_http, service_of
from tests.support.scripted import Script, ScriptedBackend, says, values
from trajectory_records.appender import open_appender
from trajectory_records.record_writer import RecordWriter

QUESTIONS = ("How many?", "How much?", "How far?")


def always(*items: str) -> Callable[[Sampling], Script]:
    return lambda _sampling: says(*items)


def asking(question: str) -> Any:
    return [{"role": "user", "content": question}]


async def ask(path: Path) -> list[str]:
    """The texts that a stock client gets: of three chats, two choices and a raw prompt."""
    student = ScriptedBackend(always(A, B, "tail"))
    teacher = ScriptedBackend(always("Right."), values({A: 0.9, B: 0.05}, entropy=0.5))
    service = service_of(student, teacher)
    async with (
        open_appender(RecordWriter(path)) as service.records,
        over_http(service) as http,
        openai.AsyncOpenAI(base_url=f"{http.base_url}/v1", api_key="none") as client,
    ):
        texts = []
        for question in QUESTIONS:
            chat = await client.chat.completions.create(model=MODEL, messages=asking(question))
            texts.append(chat.choices[0].message.content or "")
        two = await client.chat.completions.create(
            model="student/s", messages=asking(QUESTIONS[-1]), n=2, stream=True
        )
        pieces = {0: "", 1: ""}
        async for chunk in two:
            for choice in chunk.choices:
                pieces[choice.index] += choice.delta.content or ""
        raw = await client.completions.create(model=MODEL, prompt="Q: How old?\nA:")
        return [*texts, *pieces.values(), raw.choices[0].text]


@pytest.fixture
def records(tmp_path: Path) -> Path:
    path = tmp_path / "records.jsonl"
    texts = asyncio.run(ask(path))
    assert sorted(texts) == sorted(record.output for record in read_records(path))
    assert texts[:3] == [STITCHED] * 3
    return path


def say(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_the_records_make_a_report(records: Path, tmp_path: Path) -> None:
    output = tmp_path / "report.html"
    say("report", records, "--output", output)
    page = repr(data_of(output.read_text()))
    assert all(question in page for question in QUESTIONS)
    assert "However," in page


def test_the_records_are_filtered(records: Path, tmp_path: Path) -> None:
    output = tmp_path / "breached.jsonl"
    filters = ("--filter", "sound", "--filter", "breach", "--filter", "unique=first")
    assert say("filter", records, "--output", output, *filters).startswith("4 records in ")
    assert {record.method for record in read_records(output)} == {"motab"}


def test_the_records_are_exported_with_masks(records: Path, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    say("export", records, "--format", "parquet", "--mask", "unflawed", "--output", folder)
    rows = pq.read_table(folder / "train.parquet").to_pylist()
    assert len(rows) == 6
    stitched = [row for row in rows if row["output"] == STITCHED]
    assert len(stitched) == 4
    flawed = len(A), len(A + B)
    for row in stitched:
        learnt = [(span["start"], span["end"]) for span in row["loss_spans"]]
        assert learnt == [(0, flawed[0]), (flawed[1], len(STITCHED))]
    assert [row["raw_prompt"] for row in rows].count(True) == 1
    assert all(row["response_id"] for row in rows)


def test_a_chat_format_says_that_it_wraps_raw_prompts(
    records: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    say("export", records, "--format", "llamafactory", "--output", tmp_path / "export")
    (warning,) = (one.message for one in caplog.records if "raw prompt" in one.message)
    assert warning.startswith("1 record answers a raw prompt")


def test_the_records_are_rescored(records: Path) -> None:
    said = say("rescore", records, "--base-threshold", "0.01", "--entropy-scale", "1.0")
    assert "0.01" in said
    assert "left out, because other methods have no thresholds: 2 of student" in said


def test_the_records_are_verified(records: Path, tmp_path: Path) -> None:
    output = tmp_path / "verified.jsonl"
    assert say("verify", records, "--output", output).endswith("6 without a reference answer\n")


def test_a_raw_prompt_is_scored_as_a_raw_prompt(records: Path) -> None:
    asked = [scoring_body("m", record) for record in read_records(records)]
    assert [body.get("prompt") for body in asked] == [None] * 5 + ["Q: How old?\nA:"]
    assert ["messages" in body for body in asked] == [True] * 5 + [False]


def test_the_report_counts_what_was_asked_and_not_the_ids(records: Path) -> None:
    statistics = Statistics()
    for record in read_records(records):
        statistics.add(record)
    assert len(statistics.questions) == 4


def test_a_records_line_has_the_promised_fields_only(records: Path) -> None:
    chat, *_, raw = (orjson.loads(line) for line in records.read_bytes().splitlines())
    assert set(raw) - set(chat) == {"raw_prompt"}
    assert {"request_id", "response_id", "quality"} < set(chat)
