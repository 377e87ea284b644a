"""Tests `motab synth` with several corrections: what it asks, and what comes of it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.proxy.toy_pair import Proxy, toys, write_config
from tests.support.synth_client.openai_server import Scripted
from tests.support.synth_client.runs import (
    SYNTHESIS,
    Process,
    decided,
    lines,
    records,
    run,
    write_questions,
)

NUM_QUESTIONS = 30


@pytest.mark.parametrize(
    ("params", "has_reference"),
    [
        ({"corrections": 2}, True),
        ({"corrections": 2, "choose": "verified"}, True),
        ({"corrections": 2, "choose": "auto"}, True),
        ({"corrections": 2, "choose": "majority"}, False),
        ({"corrections": 1, "choose": "verified"}, False),
        ({}, False),
    ],
)
async def test_a_rows_answer_is_sent_where_one_of_several_corrections_is_chosen_by_it(
    server: Scripted, tmp_path: Path, params: dict[str, Any], has_reference: bool
) -> None:
    source = write_questions(tmp_path / "in.jsonl", 2)
    await run(server, source, tmp_path / "out.jsonl", synthesis=replace(SYNTHESIS, params=params))
    sent = [body["motab"].get("reference") for body in server.bodies]
    assert sorted(sent, key=str) == (["0", "1"] if has_reference else [None, None])


async def test_a_row_without_an_answer_is_asked_without_a_reference(
    server: Scripted, tmp_path: Path
) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(b'{"question": "Why?"}\n{"question": "Which?", "answer": ["B", "b"]}\n')
    synthesis = replace(SYNTHESIS, params={"corrections": 2})
    await run(server, source, tmp_path / "out.jsonl", synthesis=synthesis)
    sent = {body["messages"][0]["content"]: body["motab"] for body in server.bodies}
    assert sent["Why?"] == {"corrections": 2}
    assert sent["Which?"] == {"corrections": 2, "reference": '["B","b"]'}


async def test_the_reference_is_no_parameter(server: Scripted, tmp_path: Path) -> None:
    source = write_questions(tmp_path / "in.jsonl", 1)
    said = await Process(
        server.base_url, source, tmp_path / "out.jsonl", "--param", "reference=7"
    ).ended(2)
    assert "a row's answer is sent as its reference" in " ".join(said.split())


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_the_command_keeps_what_the_rule_of_both_takes_for_right(
    tmp_path: Path, workers: str
) -> None:
    source = write_questions(tmp_path / "in.jsonl", NUM_QUESTIONS)
    more = ("--workers", workers, "--verify", "number")
    async with toys() as servers, Proxy(write_config(tmp_path / "m.yaml", servers), *more) as proxy:
        base_url = await proxy.start()
        for name in ("out", "again"):
            asked = ("--param", "corrections=4", "--concurrency", "8")
            await Process(base_url, source, tmp_path / f"{name}.jsonl", *asked).ended(0)
    assert decided(tmp_path / "out.jsonl") == decided(tmp_path / "again.jsonl")
    found = records(tmp_path / "out.jsonl")
    strayed = [record for record in found if record.breach is not None]
    assert 5 < len(strayed) < NUM_QUESTIONS
    by: set[str] = set()
    for record in found:
        assert (record.chosen is None) == (record.breach is None)
        calls = record.usage.motab.correction_calls
        assert calls == (0 if record.chosen is None else 4)
        if record.chosen is not None:
            by.add(record.chosen.by)
            assert len(record.chosen.answers) == 4
            assert (record.correct is True) == (record.chosen.by == "reference")
            assert record.predicted == record.chosen.answers[record.chosen.index]
    assert by == {"reference", "majority"}
    line = lines(tmp_path / "out.jsonl")[0]
    assert (line["params"]["corrections"], line["params"]["choose"]) == (4, "auto")
    assert "reference" not in line["params"]
