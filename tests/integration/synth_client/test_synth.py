"""Tests whole runs of `motab synth` against a scripted server."""

from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from motab.cli import app
from synth_client.questions.question import Synthesis, seed_of
from synth_client.runs.outputs import Totals
from tests.support.synth_client.openai_server import Fault, Scripted
from tests.support.synth_client.runs import (
    SYNTHESIS,
    Process,
    failure,
    records,
    run,
    units,
    write_questions,
)


async def test_every_sample_of_every_row_is_there_in_the_order_of_the_input(
    server: Scripted, tmp_path: Path
) -> None:
    server.delay_s = 0.01
    source = write_questions(tmp_path / "in.jsonl", 20)
    totals = await run(server, source, tmp_path / "out.jsonl", num_samples=3)
    found = records(tmp_path / "out.jsonl")
    assert units(found) == [(f"q{i}", sample) for i in range(20) for sample in range(3)]
    assert {body["seed"] for body in server.bodies} == {
        seed_of(7, f"q{i}", sample) for i in range(20) for sample in range(3)
    }
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
    assert (body["seed"], body["max_tokens"]) == (seed_of(7, "0", 0), 9)


async def test_the_command_sends_both_models_sampling_and_the_templates_variables(
    server: Scripted, tmp_path: Path
) -> None:
    source = write_questions(tmp_path / "in.jsonl", 1)
    params = (
        "teacher.top_p=0.9",
        "teacher.top_k=5",
        "top_k=20",
        "chat_template_kwargs.enable_thinking=false",
        "reasoning_effort=low",
    )
    more = [word for param in params for word in ("--param", param)]
    await Process(server.base_url, source, tmp_path / "out.jsonl", *more).ended(0)
    (body,) = server.bodies
    assert body["motab"] == {"teacher": {"top_p": 0.9, "top_k": 5}}
    assert (body["top_k"], body["reasoning_effort"]) == (20, "low")
    assert body["chat_template_kwargs"] == {"enable_thinking": False}


async def test_the_command_reads_the_columns_that_it_is_given(
    server: Scripted, tmp_path: Path
) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(
        b'{"question": "no", "text": "Why?", "reward": {"truth": 2e-05}, "uuid": "u1", "answer": 1}'
    )
    named = ("--question-column", "text", "--answer-column", "reward.truth", "--id-column", "uuid")
    await Process(server.base_url, source, tmp_path / "out.jsonl", *named).ended(0)
    (record,) = records(tmp_path / "out.jsonl")
    assert (record.id, record.question, record.answer) == ("u1", "Why?", "0.00002")


@pytest.mark.parametrize(
    "more",
    [
        ("--param", "gamma"),
        ("--price", "water=3"),
        ("--price", "teacher=cheap"),
        ("--concurrency", "2", "--min-concurrency", "3"),
        ("--plain", "--param", "gamma=1"),
        ("--param", "temperature=1"),
        ("--param", "teacher=1", "--param", "teacher.top_k=1"),
        ("--param", "chat_template_kwargs=3"),
        ("--param", "reasoning_effort=3"),
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
