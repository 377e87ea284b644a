"""Tests that references of every type are read for what they say, from every format."""

import json
from datetime import date
from decimal import Decimal
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from synth_client.questions.dataset import open_dataset
from synth_client.questions.json_numbers import StrictJson
from synth_client.questions.layout import Columns
from synth_client.questions.question import BadRow, Question
from synth_client.questions.reference import reference_of
from tests.support.synth_client.rows import rows_of, write
from trajectory_records.record import Message

REFERENCES: list[tuple[Any, str | None]] = [
    (2e-05, "0.00002"),
    (1e16, "10000000000000000"),
    (1.5e-7, "0.00000015"),
    (0.1, "0.1"),
    (7.0, "7"),
    (-0.5, "-0.5"),
    (12, "12"),
    (True, "true"),
    (False, "false"),
    (float("nan"), None),
    (float("inf"), "inf"),
    (None, None),
    ("", None),
    (" 7 ", " 7 "),
    ("nan", "nan"),
    (["7", "7.0"], '["7","7.0"]'),
    ([7, 7.5], '["7","7.5"]'),
    (["7", None, "7"], "7"),
    ([], None),
    (Decimal("18.50"), "18.50"),
    (Decimal("2E-5"), "0.00002"),
    (Decimal("NaN"), None),
    (Decimal("1E+9999"), "1E+9999"),
    (date(2024, 5, 1), "2024-05-01"),
    (b"7", "7"),
    (0.10000000149011612, "0.1"),
    (0.30000000000000004, "0.30000000000000004"),
    (123456789012345678901234567890, "123456789012345678901234567890"),
]


@pytest.mark.parametrize(("value", "text"), REFERENCES, ids=lambda one: str(one)[:20])
def test_a_reference_is_read_for_what_it_says(value: Any, text: str | None) -> None:
    assert reference_of(value, "answer") == text


@pytest.mark.parametrize(
    "value",
    [{"a": 1}, [[1]], b"\xff", "\ud800", object(), 10**5000],
    ids=lambda one: type(one).__name__,
)
def test_what_is_no_answer_is_the_row_s_own_fault(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^answer "):
        reference_of(value, "answer")


@pytest.mark.parametrize("name", ["q.jsonl", "q.json", "q.parquet", "q"])
@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([2e-05, 1e16, None, 0.5], ["0.00002", "10000000000000000", None, "0.5"]),
        ([["7", "7.0"], ["8"]], ['["7","7.0"]', "8"]),
        ([True, False], ["true", "false"]),
    ],
)
def test_every_format_gives_the_same_references(
    name: str, values: list[Any], texts: list[str | None], tmp_path: Path
) -> None:
    path = write(tmp_path / name, [{"question": "?", "answer": value} for value in values])
    assert [row.answer for row in rows_of(path) if isinstance(row, Question)] == texts


def test_gaps_decimals_and_small_floats_of_parquet_are_read_for_what_they_say(
    tmp_path: Path,
) -> None:
    columns = {
        "gaps": pa.array([7.0, float("nan"), None]),
        "decimal": pa.array([Decimal("18.50"), Decimal("0.10"), None]),
        "small": pa.array([0.1, 0.3, 2.5e-7], pa.float32()),
    }
    pq.write_table(pa.table({"question": ["?"] * 3, **columns}), tmp_path / "q.parquet")
    for name, wanted in (
        ("gaps", ["7", None, None]),
        ("decimal", ["18.50", "0.10", None]),
        ("small", ["0.1", "0.3", "0.00000025"]),
    ):
        rows = rows_of(tmp_path / "q.parquet", columns=Columns(answer=name))
        assert [row.answer for row in rows if isinstance(row, Question)] == wanted


@pytest.mark.parametrize("name", ["q.jsonl", "q.json"])
def test_json_loses_no_digits(name: str, tmp_path: Path) -> None:
    digits = ["123456789012345678901234567890", "0.12345678901234567890", "1e400", "0.5", "7"]
    rows = [f'{{"question": "?", "answer": {one}, "level": 2.0}}' for one in digits]
    text = "[" + ",".join(rows) + "]" if name == "q.json" else "\n".join(rows)
    (tmp_path / name).write_text(text)
    found = [row.answer for row in rows_of(tmp_path / name) if isinstance(row, Question)]
    assert found == [digits[0], digits[1], "1" + "0" * 400, "0.5", "7"]
    assert all(
        isinstance(cells.columns["level"], float)
        for cells in open_dataset(str(tmp_path / name)).cells()
        if cells.columns is not None
    )


def test_a_line_that_python_wrote_with_nan_is_read(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps({"question": "?", "answer": float("nan")}))
    assert rows_of(path) == [Question("0", (Message(role="user", content="?"),), None)]


@pytest.mark.parametrize(
    "line",
    [
        b'{"question": "?", "answer": ' + b"9" * 5000 + b"}",
        b'{"question": "?", "answer": NaN, "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"question": "\\ud800", "answer": NaN}',
        b'{"question": NaN}',
    ],
)
def test_a_hostile_line_fails_alone(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_bytes(b'{"question": "first"}\n' + line + b'\n{"question": "last"}\n')
    first, bad, last = rows_of(path)
    assert isinstance(first, Question)
    assert isinstance(bad, BadRow)
    assert isinstance(last, Question)


def test_a_deep_row_of_a_json_array_fails_alone(tmp_path: Path) -> None:
    path = tmp_path / "q.json"
    deep = b"[" * 20_000 + b"]" * 20_000
    path.write_bytes(
        b'[{"question": "?"}, {"question": "?", "x": ' + deep + b'}, {"question": "?"}]'
    )
    first, bad, last = rows_of(path)
    assert isinstance(first, Question)
    assert bad == BadRow("1", "row 2", "it is nested too deeply")
    assert isinstance(last, Question)


@pytest.mark.parametrize("size", [1, 2, 9, 64, 65536])
def test_pythons_nan_and_infinity_in_an_array_are_read_for_what_they_say(
    size: int, tmp_path: Path
) -> None:
    rows: list[dict[str, Any]] = [
        {"question": 'Is "NaN" \\ a number?', "answer": float("nan")},
        {"question": "How far is -Infinity?", "answer": float("inf")},
        {"question": "NaN", "answer": [float("-inf"), 3, "Infinity"]},
        {"question": "Last?", "answer": 7},
    ]
    content = json.dumps(rows).encode()
    strict = StrictJson(BytesIO(content))
    read = json.loads(b"".join(iter(lambda: strict.read(size), b"")))
    assert [row["question"] for row in read] == [row["question"] for row in rows]
    (tmp_path / "q.json").write_bytes(content)
    found = [row.answer for row in rows_of(tmp_path / "q.json") if isinstance(row, Question)]
    assert found == [None, "inf", '["-inf","3","Infinity"]', "7"]
