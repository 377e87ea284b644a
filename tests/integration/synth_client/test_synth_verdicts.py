"""Tests how runs of `motab synth` judge and filter their records."""

from pathlib import Path

from synth_client.training_data.filters import Filters
from tests.support.synth_client.openai_server import Scripted
from tests.support.synth_client.runs import failure, records, run, write_questions


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
