"""Tests which columns of a row are read, in the layouts of other tools, too."""

import json
from pathlib import Path
from typing import Any

import pytest

from synth_client.errors import InputError
from synth_client.questions.layout import Columns
from synth_client.questions.question import Question
from tests.support.synth_client.rows import ASKED, ASSISTANT, USER, only, rows_of, write
from trajectory_records.record import Message


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER | {"name": None, "tool_calls": None, "tool_call_id": None}]},
        {"messages": [USER | {"tool_calls": [], "weight": 1, "id": "x", "refusal": None}]},
        {"messages": [USER | {"content": [{"type": "text", "text": USER["content"]}]}]},
        {"messages": json.dumps([USER | {"name": None}])},
        {"messages": [USER, ASSISTANT]},
        {"messages": [], "question": USER["content"]},
        {"conversations": [{"from": "human", "value": USER["content"]}]},
        {"conversations": [{"from": "human", "value": USER["content"], "role": None}, ASSISTANT]},
        {"prompt": [USER]},
        {"prompt": json.dumps([USER])},
        {"prompt": USER["content"], "completion": ASSISTANT["content"]},
        {"prompt": [USER], "completion": [ASSISTANT]},
        {"prompt": [USER], "chosen": [ASSISTANT], "rejected": [ASSISTANT]},
        {"prompt": [USER], "chosen": [USER, ASSISTANT]},
        {"chosen": [USER, ASSISTANT], "rejected": [USER, ASSISTANT]},
        {"problem": USER["content"], "solution": ASSISTANT["content"]},
        {"problem": USER["content"], "generations": ["<think>5</think>"], "messages": None},
    ],
)
def test_the_layouts_of_other_tools_are_read(row: dict[str, Any], tmp_path: Path) -> None:
    is_answered = any(
        name in str(row) for name in ("assistant", "completion", "solution", "chosen")
    )
    answer = ASSISTANT["content"] if is_answered else None
    assert only(tmp_path, row) == Question("1", ASKED, answer)


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ({"messages": [USER, ASSISTANT], "answer": "7"}, "7"),
        ({"messages": [USER, ASSISTANT], "answer": None}, ASSISTANT["content"]),
        ({"messages": [USER, ASSISTANT], "solution": "8"}, "8"),
        ({"prompt": "?", "completion": "bad", "label": False}, None),
        ({"prompt": "?", "completion": "good", "label": True}, "good"),
        ({"problem": "?", "solution": "\\boxed{3}", "answer": "3", "messages": []}, "3"),
        ({"problem": "?", "solution": {"steps": []}}, None),
        ({"messages": [USER, ASSISTANT | {"content": ""}]}, None),
        ({"messages": [USER, ASSISTANT | {"content": None}]}, None),
        ({"messages": [USER, ASSISTANT | {"content": None}], "answer": "7"}, "7"),
    ],
)
def test_the_reference_is_the_answer_and_else_what_the_layout_gives(
    row: dict[str, Any], answer: str | None, tmp_path: Path
) -> None:
    found = only(tmp_path, row)
    assert isinstance(found, Question)
    assert found.answer == answer


def test_an_earlier_answer_of_the_assistant_is_part_of_the_question(tmp_path: Path) -> None:
    found = only(tmp_path, {"messages": [USER, ASSISTANT, USER, ASSISTANT]})
    assert isinstance(found, Question)
    assert [message.role for message in found.messages] == ["user", "assistant", "user"]
    assert found.answer == ASSISTANT["content"]


@pytest.mark.parametrize("name", ["q.jsonl", "q.json", "q.csv", "q.parquet", "q"])
def test_the_columns_can_be_named(name: str, tmp_path: Path) -> None:
    row = {
        "question": "no",
        "text": "Why?",
        "answer": "no",
        "target": "so",
        "id": "no",
        "uuid": "u",
    }
    path = write(tmp_path / name, [row])
    named = Columns(question="text", answer="target", id="uuid")
    asked = (Message(role="user", content="Why?"),)
    assert rows_of(path, columns=named) == [Question("u", asked, "so")]


def test_a_named_column_may_be_a_field_of_another(tmp_path: Path) -> None:
    row = {"prompt": [USER], "reward_model": {"ground_truth": "7"}, "extra": {"index": 4}}
    path = write(tmp_path / "q.jsonl", [row])
    named = Columns(answer="reward_model.ground_truth", id="extra.index")
    assert rows_of(path, columns=named) == [Question("4", ASKED, "7")]


@pytest.mark.parametrize(
    ("columns", "fault"),
    [
        (Columns(question="text"), "no column text (columns: question, answer)"),
        (Columns(answer="target"), "no column target (columns: question, answer)"),
        (Columns(answer="answer.value"), "no column answer.value (columns: question, answer)"),
        (Columns(id="uuid"), "no column uuid (columns: question, answer)"),
        (Columns(id="answer"), "answer is neither a text nor a whole number, so it is no id"),
    ],
)
def test_a_row_without_a_named_column_is_told(columns: Columns, fault: str, tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", [{"question": "?", "answer": 0.5}])
    with pytest.raises(InputError) as caught:
        rows_of(path, columns=columns)
    assert str(caught.value) == (f"{path}: the first row holds no question; line 1: {fault}")


@pytest.mark.parametrize("name", ["q.csv", "q.parquet"])
@pytest.mark.parametrize(
    "columns", [Columns(question="text"), Columns(answer="target"), Columns(id="uuid")]
)
def test_a_table_without_a_named_column_is_refused(
    name: str, columns: Columns, tmp_path: Path
) -> None:
    path = write(tmp_path / name, [{"question": "?", "answer": "7"}])
    with pytest.raises(InputError, match=r"no column \w+; its columns: question, answer"):
        rows_of(path, columns=columns)
