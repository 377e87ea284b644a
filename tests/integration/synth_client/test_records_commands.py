"""`motab verify` and `motab filter` on files."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from motab.cli import app
from synth_client.files.record_file import read_records
from tests.support.patience import longer_and_longer
from tests.support.records import breached, record_of, unbroken
from trajectory_records.record import Record

RIGHT = record_of(breached())
WRONG = record_of(unbroken(id="wrong", answer="4"))
UNKNOWN = record_of(unbroken(id="unknown", answer=None, correct=None))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "records.jsonl"
    path.write_bytes(b"".join(record.to_json_line() for record in (RIGHT, WRONG, UNKNOWN)))
    return path


def say(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def judged(path: Path) -> list[tuple[str, str | None, bool | None]]:
    return [(record.id, record.predicted, record.correct) for record in read_records(path)]


@pytest.mark.parametrize("rule", ["math", "number"])
def test_records_are_judged_anew_in_order(rule: str, source: Path, tmp_path: Path) -> None:
    changed = [
        record.model_copy(update={"predicted": "?", "correct": None})
        for record in read_records(source)
    ]
    source.write_bytes(b"".join(record.to_json_line() for record in changed))
    output = tmp_path / "verified.jsonl"
    said = say("verify", source, "--output", output, "--rule", rule)
    assert said == "1 right, 1 wrong, 1 without a reference answer\n"
    assert judged(output) == [
        ("apples", "36", True),
        ("wrong", "3", False),
        ("unknown", "3", None),
    ]
    assert {record.verification.rule for record in read_records(output) if record.verification} == {
        rule
    }
    assert judged(source)[0] == ("apples", "?", None)


def test_what_cannot_be_judged_is_counted_by_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    bomb = "\\boxed{9^{9^{9^9}}}"
    spans = [{"role": "student", "start": 0, "end": len(bomb)}]
    records = [RIGHT, record_of(unbroken(output=bomb, spans=spans, steps=[])), WRONG]
    for limit_s in longer_and_longer(2):
        path.write_bytes(b"".join(record.to_json_line() for record in records))
        limit = ("--timeout", f"{limit_s:g}")
        said = say("verify", path, "--output", path, *limit, "--workers", "1")
        if said.startswith("1 right, 1 wrong"):  # there was time enough for the others
            break
    else:
        pytest.fail("no limit was long enough")
    assert said == (
        "1 right, 1 wrong, 0 without a reference answer\n"
        f"1 not judged: verification took longer than {limit_s:g} s\n"
    )
    assert [correct for _, _, correct in judged(path)] == [True, None, False]


def test_filtered_records_are_as_they_were_and_the_rest_is_elsewhere(
    source: Path, tmp_path: Path
) -> None:
    dropped = tmp_path / "dropped.jsonl"
    said = say("filter", source, "--output", source, "--filter", "correct", "--dropped", dropped)
    assert said == f"1 records in {source}\n2 dropped by correct\n"
    assert list(read_records(source)) == [RIGHT]
    assert list(read_records(dropped)) == [WRONG, UNKNOWN]


def test_where_nothing_is_dropped_there_is_no_file_of_it(source: Path, tmp_path: Path) -> None:
    dropped = tmp_path / "dropped.jsonl"
    dropped.touch()
    say("filter", source, "--output", source, "--filter", "chars>=1", "--dropped", dropped)
    assert not dropped.exists()


def test_an_export_says_what_it_holds(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    said = say("export", source, "--format", "sharegpt", "--output", output, "--filter", "correct")
    assert said == f"1 records in {output}\n2 dropped by correct\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["filter", "SOURCE", "--output", "x"],
        ["filter", "SOURCE", "--output", "x", "--dropped", "x", "--filter", "correct"],
        ["export", "SOURCE", "--output", "x", "--format", "csv"],
    ],
)
def test_wrong_usage_has_exit_code_2(arguments: list[str], source: Path) -> None:
    filled = [str(source) if argument == "SOURCE" else argument for argument in arguments]
    assert CliRunner().invoke(app, filled).exit_code == 2


def test_a_record_survives_the_commands(source: Path) -> None:
    say("filter", source, "--output", source, "--filter", "breach")
    assert Record.from_json_line(source.read_bytes()) == RIGHT
