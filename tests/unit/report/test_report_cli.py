from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from typer.testing import CliRunner, Result

from motab.cli import app
from proxy.options import parse_options
from synth_client.errors import ClientError, InputError, OutputError
from synth_client.report.rescore import RescoreError
from tests.support.pages import data_of
from tests.support.records import breached, unbroken

Run = Callable[..., Result]


@pytest.fixture
def records(tmp_path: Path) -> Path:
    return written(tmp_path / "records.jsonl", breached(), unbroken())


def written(path: Path, *records: dict[str, Any]) -> Path:
    path.write_bytes(b"".join(orjson.dumps(fields) + b"\n" for fields in records))
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(
        app, [str(argument) for argument in arguments], env={"COLUMNS": "160"}
    )


def error_of(*arguments: object) -> ClientError:
    """The error that the command raises, which `main` prints before it exits with 1."""
    error = run(*arguments).exception
    assert isinstance(error, ClientError)
    return error


def rows_of(result: Result) -> list[list[str]]:
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.output.splitlines()]
    return [line for line in lines if line and line[0][0].isdigit()]


def test_a_report_is_written_with_prices_and_a_sample(records: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "page.html"
    result = run(
        "report", records, "--output", output, "--max-trajectories", 1, "--price", "student=2"
    )
    assert result.exit_code == 0
    html = output.read_text(encoding="utf-8")
    assert len(data_of(html)["index"]) == 1
    assert "2.00" in html


def test_a_report_may_be_about_several_files(records: Path, tmp_path: Path) -> None:
    other = written(tmp_path / "other.jsonl", unbroken(id="other", method="teacher"))
    output = tmp_path / "page.html"
    assert run("report", records, other, "--output", output).exit_code == 0
    rows = data_of(output.read_text(encoding="utf-8"))["index"]
    assert [row[0] for row in rows] == ["apples", "bags", "other"]
    before = other.read_bytes()
    assert run("report", records, other, "--output", other).exit_code == 2
    assert other.read_bytes() == before


def test_a_report_names_its_files_and_takes_a_baseline(records: Path, tmp_path: Path) -> None:
    own = unbroken(id="apples", method="student")
    baseline, output = written(tmp_path / "alone.jsonl", own), tmp_path / "page.html"
    assert run("report", records, "--baseline", baseline, "--output", output).exit_code == 0
    html = output.read_text(encoding="utf-8")
    assert "<h1>records.jsonl</h1>" in html
    assert "<b>0</b> of 1 right by the student alone, <b>1</b> of 1 right with motab." in html
    error = error_of("report", records, "--baseline", records, "--output", output)
    assert str(error).startswith("the baseline's record apples is of the method motab")
    assert output.read_text(encoding="utf-8") == html
    before = baseline.read_bytes()
    assert run("report", records, "--baseline", baseline, "--output", baseline).exit_code == 2
    assert baseline.read_bytes() == before


@pytest.mark.parametrize("price", ["student", "student=-1", "nobody=1", "student=nan"])
def test_a_price_that_is_none_is_a_usage_error(records: Path, price: str) -> None:
    result = run("report", records, "--price", price)
    assert result.exit_code == 2
    assert "prompt, student, scored, teacher=PRICE" in " ".join(result.output.split())


@pytest.mark.parametrize("command", ["report", "rescore"])
def test_a_broken_line_is_named(command: str, records: Path, tmp_path: Path) -> None:
    with records.open("ab") as file:
        file.write(b"{}\n")
    error = error_of(command, records, "--output", tmp_path / "page.html")
    assert isinstance(error, InputError)
    assert str(error).startswith(f"{records}, line 3: id is missing")
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize("command", ["report", "rescore"])
def test_a_missing_file_is_named(command: str, tmp_path: Path) -> None:
    error = error_of(command, tmp_path / "none.jsonl", "--output", tmp_path / "page.html")
    assert str(error) == f"{tmp_path / 'none.jsonl'}: no such file"


@pytest.mark.parametrize("command", ["report", "rescore"])
def test_the_records_are_never_overwritten(command: str, records: Path) -> None:
    before = records.read_bytes()
    assert run(command, records, "--output", records).exit_code == 2
    assert records.read_bytes() == before


@pytest.mark.parametrize("command", ["report", "rescore"])
def test_a_page_that_cannot_be_written_is_named(command: str, records: Path) -> None:
    output = records / "page.html"
    error = error_of(command, records, "--output", output)
    assert isinstance(error, OutputError)
    assert str(error).startswith(str(output))


def test_rescoring_without_thresholds_repeats_what_was_decided(records: Path) -> None:
    # 18 of the breached record's 36 tokens and all 18 of the other's.
    assert rows_of(run("rescore", records)) == [
        ["0.2", "1", "1", "0", "50.0%", "1.00", "36", "(67%)"]
    ]


def test_several_thresholds_make_a_grid(records: Path) -> None:
    result = run(
        *("rescore", records, "--base-threshold", 0.05, "--base-threshold", 1),
        *("--entropy-scale", 0, "--entropy-scale", 1),
    )
    assert rows_of(result) == [
        # V = 0.05 is not below 0.05: the record that was cut there may continue.
        ["0.05", "0", "0", "1", "0.0%", "to", "50.0%", "-", "\u2265", "36", "(67%)"],
        ["1", "0", "2", "0", "100.0%", "0.00", "0", "(0%)"],
        ["0.05", "1", "0", "1", "0.0%", "to", "50.0%", "-", "\u2265", "36", "(67%)"],
        # 1 * exp(-0.5) = 0.607: the first record falls below it at step 2.
        ["1", "1", "1", "0", "50.0%", "0.00", "36", "(67%)"],
    ]
    assert "may breach later" in result.output


def test_calibration_adds_the_row_of_the_threshold_it_found(records: Path) -> None:
    result = run("rescore", records, "--calibrate", 1, "--entropy-scale", 0)
    # 0.74 is the lowest value of the second record; so 0.9 is between it and 1.
    assert rows_of(result) == [["0.9", "0", "2", "0", "100.0%", "0.00", "0", "(0%)"]]
    assert "base_threshold 0.9 comes closest to a breach rate of 100.0%" in result.output


def test_calibration_that_the_records_cannot_settle_gives_bounds(tmp_path: Path) -> None:
    lower = unbroken()
    lower["steps"][1]["value"] = 0.04
    records = written(tmp_path / "records.jsonl", breached(), lower)
    result = run("rescore", records, "--calibrate", 0.5, "--entropy-scale", 0)
    assert rows_of(result)[0][:4] == ["0.045", "0", "1", "1"]
    assert "base_threshold between 0 and 0.045 comes closest to a breach rate of 50.0%" in (
        result.output
    )
    assert "the records end at their breaches" in result.output


def trial(name: str, value: float, *, correct: bool | None) -> dict[str, Any]:
    fields = unbroken(id=name, correct=correct)
    fields["steps"][1]["value"] = value
    return fields


def test_calibration_by_labels_learns_thresholds_for_each_theta(tmp_path: Path) -> None:
    records = written(
        tmp_path / "records.jsonl",
        *(trial("a", 0.74, correct=True), trial("b", 0.3, correct=False)),
        trial("c", 0.1, correct=None),
    )
    result = run("rescore", records, "--calibrate", "labels", "--entropy-scale", 0)
    assert rows_of(result) == [["0.5", "0", "2", "0", "66.7%", "0.00", "36", "(67%)"]]
    said = " ".join(result.output.split())
    assert "base_threshold 0.5 catches 100.0% of 1 wrong and 0.0% of 1 right parts" in said
    assert "the rule takes entropy_scale 0 and base_threshold 0.5" in said
    assert "left out of the rule: 1 without a verdict" in said
    # All entropies are 0.5, so every theta parts them, and theta 0 is preferred.
    result = run("rescore", records, "--calibrate", "labels")
    assert [row[1] for row in rows_of(result)] == ["0", "0.25", "0.5", "1"]
    assert "the rule takes entropy_scale 0 and" in " ".join(result.output.split())


def test_calibration_by_labels_refuses_what_has_none(tmp_path: Path) -> None:
    records = written(tmp_path / "records.jsonl", trial("a", 0.74, correct=None))
    assert "of the labelled parts (0) none is right" in str(
        error_of("rescore", records, "--calibrate", "labels")
    )


def trials(path: Path, *, labelled: bool = True) -> Path:
    """20 right trajectories with 0.5 to 0.69 at their second step, and two wrong ones."""
    correct = True if labelled else None
    right = [trial(f"r{n}", (50 + n) / 100, correct=correct) for n in range(20)]
    wrong = [trial(f"w{n}", 0.3, correct=False if labelled else None) for n in range(2)]
    return written(path, *right, *wrong, trial("u", 0.1, correct=None))


def test_a_boundary_by_step_is_printed_and_written_as_params(tmp_path: Path) -> None:
    records, params = trials(tmp_path / "records.jsonl"), tmp_path / "params.yaml"
    result = run("rescore", records, "--calibrate", "quantile", "--params-output", params)
    # 0.5 and all first values of 0.81 are right; 0.3 and 0.1 are below.
    row = rows_of(result)[0]
    assert row == ["0.5", "to", "0.81", "by", "step", "3", "0", "13.0%", "0.00", "387", "(93%)"]
    said = " ".join(result.output.split())
    assert "at most 0.0% of the right steps lie below it; it has 2 values" in said
    assert "catches 2 of 2 wrong and 0 of 20 right parts" in said
    assert "left out of the rule: 1 without a verdict" in said
    assert "boundary: quantile\nboundary_values: [0.81, 0.5]\n" in result.output
    options = yaml.safe_load(params.read_text(encoding="utf-8"))
    assert options == {"boundary": "quantile", "boundary_values": [0.81, 0.5]}
    assert parse_options(options).boundary_values == (0.81, 0.5)
    page = tmp_path / "page.html"
    again = run("rescore", records, "--boundary-values", "[0.81, 0.5]", "--output", page)
    assert rows_of(again)[1] == row
    html = page.read_text(encoding="utf-8")
    assert '<td class="number">0.5 to 0.81</td>' in html
    assert len(data_of(html)["plots"]["rate"]["data"][0]["x"]) == 1


def test_a_boundary_by_step_takes_a_share_instead_of_labels(tmp_path: Path) -> None:
    records = trials(tmp_path / "records.jsonl", labelled=False)
    assert "of the labelled parts (0) none is right" in str(
        error_of("rescore", records, "--calibrate", "quantile")
    )
    page = tmp_path / "page.html"
    asked = ("--calibrate", "quantile", "--quantile", 0.1, "--output", page)
    result = run("rescore", records, *asked)
    # At index 1 are 23 values, and two of them, 0.1 and 0.3, lie below 0.3 and 0.5.
    assert rows_of(result)[0][:5] == ["0.3", "to", "0.81", "by", "step"]
    assert "no record has a verdict: all 23 trajectories count as right" in result.output
    assert data_of(page.read_text(encoding="utf-8"))["plots"] == {}


def test_records_made_by_step_are_rescored_under_their_own_boundary(tmp_path: Path) -> None:
    own = {"boundary": "quantile", "boundary_values": [0.2, 0.1]}
    fields = [unbroken(id=name, params={**unbroken()["params"], **own}) for name in "ab"]
    records = written(tmp_path / "records.jsonl", *fields)
    assert rows_of(run("rescore", records)) == [
        ["0.1", "to", "0.2", "by", "step", "0", "0", "0.0%", "-", "36", "(100%)"]
    ]
    (first, second) = rows_of(run("rescore", records, "--base-threshold", 0.75))
    assert first == ["0.75", "0", "2", "0", "100.0%", "0.00", "18", "(50%)"]
    assert second[:5] == ["0.1", "to", "0.2", "by", "step"]
    assert "no base_threshold" in str(error_of("rescore", records, "--entropy-scale", 1))


def test_the_records_are_never_overwritten_by_params(records: Path) -> None:
    before = records.read_bytes()
    result = run("rescore", records, "--calibrate", "quantile", "--params-output", records)
    assert result.exit_code == 2
    assert "--params-output is the input itself" in " ".join(result.output.split())
    assert records.read_bytes() == before


def test_rescoring_writes_a_page_with_its_table_and_plots(records: Path, tmp_path: Path) -> None:
    output = tmp_path / "page.html"
    assert run("rescore", records, "--base-threshold", 0.1, "--output", output).exit_code == 0
    html = output.read_text(encoding="utf-8")
    assert set(data_of(html)["plots"]) == {"rate", "accepted", "depth"}
    assert '<td class="number">0.1</td>' in html


@pytest.mark.parametrize(
    "arguments",
    [
        ("--base-threshold", 1.5),
        ("--base-threshold", "nan"),
        ("--entropy-scale", -1),
        ("--entropy-scale", "inf"),
        ("--calibrate", 2),
        ("--calibrate", "nan"),
        ("--calibrate", "label"),
        ("--calibrate", "labels", "--quantile", 0.1),
        ("--calibrate", "quantile", "--quantile", 1.1),
        ("--calibrate", "quantile", "--quantile", "nan"),
        ("--calibrate", "quantile", "--entropy-scale", 1),
        ("--params-output", "params.yaml"),
        ("--boundary-values", "0.1"),
        ("--boundary-values", "[]"),
        ("--boundary-values", "[1.1]"),
        ("--boundary-values", "[true]"),
    ],
)
def test_thresholds_out_of_bounds_are_usage_errors(
    records: Path, arguments: tuple[object, ...]
) -> None:
    assert run("rescore", records, *arguments).exit_code == 2


def test_an_empty_file_cannot_be_rescored_but_reported(tmp_path: Path) -> None:
    empty = written(tmp_path / "records.jsonl")
    assert isinstance(error_of("rescore", empty), RescoreError)
    assert run("report", empty, "--output", tmp_path / "page.html").exit_code == 0
    assert "There are no records" in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("command", ["report", "rescore"])
def test_without_plotly_the_command_says_what_to_install(
    command: str, records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("synth_client.report.page.find_spec", lambda _name: None)
    error = error_of(command, records, "--output", tmp_path / "page.html")
    assert str(error) == "pages need plotly: pip install 'motab[report]'"
    assert not (tmp_path / "page.html").exists()
