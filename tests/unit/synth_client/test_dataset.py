import json
import tracemalloc
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from synth_client.errors import InputError
from synth_client.questions.dataset import Dataset, open_dataset
from synth_client.questions.question import BadRow, Question
from tests.support.synth_client.rows import ASSISTANT, USER, only, rows_of, write
from trajectory_records.record import Message

ROWS: list[dict[str, Any]] = [
    {"id": "a", "question": "How many?", "answer": "3"},
    {"id": "b", "question": 'Say "é", or\nnot?', "answer": "4"},
    {"id": "c", "question": "Why?", "answer": None},
]
QUESTIONS = [
    Question("a", (Message(role="user", content="How many?"),), "3"),
    Question("b", (Message(role="user", content='Say "é", or\nnot?'),), "4"),
    Question("c", (Message(role="user", content="Why?"),), None),
]


@pytest.mark.parametrize("name", ["q.jsonl", "q.json", "q.parquet", "q"])
def test_every_format_gives_the_same_questions(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, ROWS)
    assert rows_of(path) == QUESTIONS
    assert rows_of(path, limit=2) == QUESTIONS[:2]
    assert open_dataset(str(path)).name == (name if path.is_file() else "q train")


@pytest.mark.parametrize("name", ["q.csv", "q.tsv"])
def test_in_a_table_of_texts_an_empty_answer_is_none(name: str, tmp_path: Path) -> None:
    assert rows_of(write(tmp_path / name, ROWS)) == QUESTIONS


def test_a_folder_of_data_files_is_a_dataset(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", ROWS)
    assert rows_of(tmp_path) == QUESTIONS


def test_a_saved_dataset_has_splits(tmp_path: Path) -> None:
    parts = {"train": ROWS[:1], "test": ROWS[1:]}
    saved = datasets.DatasetDict({k: datasets.Dataset.from_list(v) for k, v in parts.items()})
    saved.save_to_disk(str(tmp_path / "q"))
    assert rows_of(tmp_path / "q", split="test") == QUESTIONS[1:]
    with pytest.raises(InputError, match="no split 'dev'; its splits: train, test"):
        open_dataset(str(tmp_path / "q"), split="dev")


@pytest.mark.parametrize(
    ("name", "total"), [("q.jsonl", 3), ("q.parquet", 3), ("q", 3), ("q.csv", None)]
)
def test_the_number_of_rows_is_known_where_that_is_cheap(
    name: str, total: int | None, tmp_path: Path
) -> None:
    path = write(tmp_path / name, ROWS)
    assert open_dataset(str(path)).count() == total
    assert open_dataset(str(path), limit=2).count() == (None if total is None else 2)
    assert open_dataset(str(path), limit=9).count() == total


@pytest.mark.parametrize("column", ["question", "problem", "prompt", "instruction", "input"])
def test_the_column_of_the_question_is_recognised(column: str, tmp_path: Path) -> None:
    found = only(tmp_path, {"x": 1, column: "Why?"})
    assert found == Question("1", (Message(role="user", content="Why?"),))


def test_the_first_of_several_columns_that_holds_something_is_the_question(tmp_path: Path) -> None:
    row = {"input": "4", "prompt": "3", "problem": "2", "question": None}
    found = only(tmp_path, row)
    assert isinstance(found, Question)
    assert found.messages[0].content == "2"


def test_messages_come_before_all(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    for value in (messages, json.dumps(messages)):
        found = only(tmp_path, {"question": "no", "messages": value, "id": 7, "answer": 0.5})
        wanted = tuple(Message(**message) for message in messages)
        assert found == Question("7", wanted, "0.5")


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ([1], "a list, not an object"),
        ({"text": "?"}, "no question: none of messages, question, problem, prompt, instruction"),
        ({"question": " \n"}, "question is not a text, or is empty"),
        ({"question": 3}, "question is not a text, or is empty"),
        ({"messages": []}, "messages is empty"),
        ({"messages": "hello"}, "messages: invalid JSON"),
        ({"messages": [{"role": "user"}]}, "messages: 0.content is missing"),
        (
            {"messages": [{"role": "assistant", "content": "!"}]},
            "messages has no message before the assistant's, so there is no question",
        ),
        (
            {"messages": [USER, {"role": "assistant", "content": "!"}, ASSISTANT]},
            "messages ends with an assistant message before the answer",
        ),
        ({"messages": {"role": "user"}}, "messages is no list of messages"),
        ({"messages": ["hello"]}, "messages: 0: "),
        ({"messages": [USER | {"role": 3}]}, "messages: 0.role: "),
        ({"messages": [USER, None]}, "messages: 1: "),
        (
            {"messages": [USER | {"tool_calls": [{"id": "1"}]}]},
            "messages: 0.tool_calls: a question can only have text",
        ),
        (
            {"messages": [USER | {"content": [{"type": "image", "text": None}]}]},
            "messages: 0.content: only parts of type text can be asked",
        ),
        ({"prompt": [{"role": "user"}]}, "prompt: 0.content is missing"),
        ({"question": ["?"]}, "question is not a text, or is empty"),
        (
            {"question": "?", "answer": {"value": "3", "aliases": []}},
            "answer is an object, not an answer; its fields: value, aliases",
        ),
        ({"question": "?", "answer": [["3"]]}, "answer is no answer, but a list"),
    ],
)
def test_a_row_that_asks_nothing_is_told_with_its_place(
    row: Any, fault: str, tmp_path: Path
) -> None:
    found = only(tmp_path, row)
    assert isinstance(found, BadRow)
    assert (found.id, found.place) == ("1", "line 2")
    assert found.fault.startswith(fault)


def test_a_bad_line_is_a_bad_row_and_the_others_are_read(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"question": "1"}\n\n{"question"\n{"question": "\xff"}\n{"question": "2"}')
    first, second, third, last = rows_of(path)
    assert isinstance(first, Question)
    assert isinstance(last, Question)
    assert (first.id, last.id) == ("0", "3")
    assert second == BadRow(
        "1", "line 3", "invalid JSON: unexpected end of data at character 12 of the line"
    )
    assert third == BadRow("2", "line 4", "not valid UTF-8 at byte 15 of the line")


def test_a_csv_row_of_another_length_is_a_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_bytes(b"\xef\xbb\xbfquestion,answer\n1,2,3\n4\nwell?,5\n\xff?,6\n")
    long, short, good, latin = rows_of(path)
    assert isinstance(long, BadRow)
    assert (long.place, long.fault) == ("line 2", "3 fields, but the header has 2")
    assert isinstance(short, BadRow)
    assert short.place == "line 3"
    assert good == Question("2", (Message(role="user", content="well?"),), "5")
    assert isinstance(latin, BadRow)
    assert latin.fault == "question is not valid UTF-8"


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("q.jsonl", b"", "q.jsonl holds no rows"),
        ("q.json", b"[]", "does not hold an array of rows"),
        ("q.json", b'{"question": "?"}', "does not hold an array of rows"),
        ("q.json", b'[{"question": "?"}, {"que', "invalid JSON after row 1: "),
        ("q.csv", b"", "q.csv holds no rows"),
        ("q.csv", b"question\n", "q.csv holds no rows"),
        ("q.csv", b"text,label\na,b\n", "no column messages, question, problem, prompt,"),
        ("q.csv", b'question\none\n"open\ntwo\n', "line 3: invalid CSV from here on: "),
        ("q.jsonl", b'{"q": 1}\n' * 3, "the first 3 rows hold no question; line 1: no question: "),
        ("q.jsonl", b"{", "q.jsonl: the first row holds no question; line 1: invalid JSON: "),
        ("q.parquet", b"PAR1 nonsense", "not readable as Parquet: "),
        ("q.xlsx", b"", "unknown format '.xlsx'; known formats are .jsonl, .ndjson, .json, .csv"),
    ],
)
def test_an_input_that_cannot_be_read_is_told_in_one_line(
    name: str, content: bytes, sentence: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        rows_of(path)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_input_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.jsonl: no such file"):
        open_dataset(str(tmp_path / "none.jsonl"))
    with pytest.raises(InputError, match="nothing: no such file or folder"):
        open_dataset(str(tmp_path / "nothing"))


def test_a_folder_without_data_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a readable dataset: "):
        open_dataset(str(tmp_path))


def test_an_input_that_begins_with_bad_rows_is_read_up_to_a_hundred_of_them(
    tmp_path: Path,
) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"[]\n" * 99 + b'{"question": "?"}\n[]\n')
    rows = rows_of(path)
    assert [isinstance(row, BadRow) for row in rows] == [True] * 99 + [False, True]
    path.write_bytes(b"[]\n" * 100 + b'{"question": "?"}\n')
    with pytest.raises(InputError, match="the first 100 rows hold no question; line 1: a list"):
        rows_of(path)


def test_a_parquet_file_without_a_question_is_told(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["?"]}), tmp_path / "q.parquet")
    with pytest.raises(InputError, match=r"no column messages, .*; its columns: text"):
        rows_of(tmp_path / "q.parquet")


def test_rows_can_be_read_again(tmp_path: Path) -> None:
    dataset: Dataset = open_dataset(str(write(tmp_path / "q.jsonl", ROWS)))
    assert list(dataset.rows()) == list(dataset.rows()) == QUESTIONS


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_a_large_file_is_not_held(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"large{suffix}"
    rows = [{"question": f"{i} " + "word " * 200} for i in range(20_000)]  # 20 MB
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, compression="none")
    else:
        write(path, rows)
    del rows
    before = pa.total_allocated_bytes()
    most_arrow = number = 0
    tracemalloc.start()
    try:
        for _ in open_dataset(str(path)).rows():
            number += 1
            most_arrow = max(most_arrow, pa.total_allocated_bytes() - before)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert number == 20_000
    assert peak < 3_000_000
    assert most_arrow < 5_000_000
