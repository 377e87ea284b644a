"""Every export but LLaMA-Factory's (tests/trainer) loaded back by the library it is for."""

import tracemalloc
from pathlib import Path
from typing import Any, get_args

import datasets
import orjson
import pandas as pd
import pyarrow.parquet
import pytest

from synth_client.errors import InputError, OutputError
from synth_client.training_data.export import FORMATS, MARKER, Export, Format, export
from synth_client.training_data.filters import Filters
from synth_client.training_data.masks import Mask
from tests.support.records import breached, record_of, several, unbroken
from tests.support.synth_client.exports import RECORDS, THINKING, written
from trajectory_records.record import Record

ASKED = "How many apples are in 12 bags [of 3]?"


def run(folder: Path, to: Format, *filters: str, mask: Mask = "all", **how: Any) -> Path:
    source = folder / "records.jsonl"
    if not source.exists():
        written(source)
    output = folder / "out"
    export(
        Export(
            source=source,
            output=output,
            format=to,
            filters=Filters(filters),
            mask=mask,
            **how,
        )
    )
    return output


def rows_of(output: Path) -> list[dict[str, Any]]:
    loaded = datasets.load_dataset(
        "json",
        data_files=str(output / "train.jsonl"),
        split="train",
        cache_dir=str(output.parent / "cache"),
    )
    return list(loaded)


def test_messages_end_with_the_output(tmp_path: Path) -> None:
    for row, record in zip(rows_of(run(tmp_path, "messages")), RECORDS, strict=True):
        asked = [message.model_dump() for message in record.messages]
        assert row == {"messages": [*asked, {"role": "assistant", "content": record.output}]}


def test_sharegpt_names_the_speakers_in_its_way(tmp_path: Path) -> None:
    rows = rows_of(run(tmp_path, "sharegpt"))
    assert rows[0] == {
        "conversations": [
            {"from": "system", "value": "Think in steps."},
            {"from": "human", "value": ASKED},
            {"from": "gpt", "value": RECORDS[0].output},
        ]
    }
    assert [turn["from"] for turn in rows[2]["conversations"]] == [
        "system",
        "human",
        "gpt",
        "human",
        "gpt",
    ]


def test_alpaca_keeps_the_turns_before_apart(tmp_path: Path) -> None:
    rows = rows_of(run(tmp_path, "alpaca"))
    assert rows[0] == {
        "instruction": ASKED,
        "input": "",
        "output": RECORDS[0].output,
        "system": "Think in steps.",
        "history": [],
    }
    assert rows[2] == {
        "instruction": "6 * 6?",
        "input": "",
        "output": THINKING,
        "system": "Think.",
        "history": [["Hello", "Good day."]],
    }


def back(row: dict[str, Any]) -> Record:
    """The record that a row of a table was made from."""
    fields = {name: value for name, value in row.items() if name != "loss_spans"}
    if fields["verification"] is not None:
        scores = orjson.loads(fields["verification"]["scores"])
        fields["verification"] = {**fields["verification"], "scores": scores}
    for name in ("params", "sampling", "chat_template_kwargs", "scoring_fallbacks"):
        fields[name] = orjson.loads(fields[name] or "null")
    return Record.from_json_line(orjson.dumps(fields))


def test_parquet_keeps_every_record_whole(tmp_path: Path) -> None:
    path = run(tmp_path, "parquet") / "train.parquet"
    rows = pyarrow.parquet.read_table(path).to_pylist()
    assert [back(row) for row in rows] == RECORDS
    frame = pd.read_parquet(path)
    assert list(frame["output"]) == [record.output for record in RECORDS]
    assert list(frame["correct"]) == [True, False, None]
    assert frame["steps"][0][3]["value"] == 0.05


def test_parquet_keeps_what_a_record_only_sometimes_has(tmp_path: Path) -> None:
    fields = breached() | {"scoring_fallbacks": {"judge_sample": [1]}}
    fields |= {
        "limited_by": {"model": "teacher", "limit": "context_tokens", "tokens": 4096},
        "chosen": {"index": 2, "by": "majority", "answers": ["5", None, "7"]},
        "sampling": {"temperature": 0.6, "top_k": 20},
        "chat_template_kwargs": {"enable_thinking": False},
        "reasoning_effort": "low",
    }
    record = record_of(fields | {"wasted": fields["usage"]})
    (tmp_path / "records.jsonl").write_bytes(record.to_json_line())
    path = run(tmp_path, "parquet") / "train.parquet"
    assert [back(row) for row in pyarrow.parquet.read_table(path).to_pylist()] == [record]


def test_a_dataset_folder_keeps_every_record_whole_and_nothing_else(tmp_path: Path) -> None:
    output = run(tmp_path, "hf")
    loaded = datasets.load_from_disk(str(output))
    assert [back(row) for row in loaded] == RECORDS
    assert sorted(path.name for path in output.iterdir()) == [
        MARKER,
        "data-00000-of-00001.arrow",
        "dataset_info.json",
        "state.json",
    ]


def test_parquet_lists_the_breaches_where_there_are_several(tmp_path: Path) -> None:
    rounds = ((1, 2), (0, 1), (1, 1))
    records = [record_of(several(*rounds[:num], tail=1)) for num in range(4)]
    lines = b"".join(record.to_json_line() for record in records)
    (tmp_path / "records.jsonl").write_bytes(lines)
    path = run(tmp_path, "parquet", mask="correction") / "train.parquet"
    rows = pyarrow.parquet.read_table(path).to_pylist()
    assert [back(row) for row in rows] == records
    assert [row["breaches"] and len(row["breaches"]) for row in rows] == [None, None, 2, 3]
    assert [len(row["loss_spans"]) for row in rows] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("mask", "learned"),
    [
        ("all", ["student+flawed+revise+teacher", "student", "teacher"]),
        ("correction", ["revise+teacher", "", "teacher"]),
        ("unflawed", ["student,revise+teacher", "student", "teacher"]),
    ],
)
@pytest.mark.parametrize("to", ["parquet", "hf"])
def test_tables_say_which_characters_to_learn_from(
    to: Format, mask: Mask, learned: list[str], tmp_path: Path
) -> None:
    output = run(tmp_path, to, mask=mask)
    if to == "hf":
        rows = list(datasets.load_from_disk(str(output)))
    else:
        rows = pyarrow.parquet.read_table(output / "train.parquet").to_pylist()
    for row, expected in zip(rows, learned, strict=True):
        spans = {span["role"]: span for span in row["spans"]}
        groups = [group.split("+") for group in expected.split(",") if group]
        assert row["loss_spans"] == [
            {"start": spans[group[0]]["start"], "end": spans[group[-1]]["end"]} for group in groups
        ]


@pytest.mark.parametrize("to", ["llamafactory", "sharegpt", "alpaca", "messages"])
def test_a_mask_that_a_format_cannot_express_is_refused(to: Format, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        run(tmp_path, to, mask="correction")
    assert str(caught.value) == (
        f"--mask correction: {to} cannot leave a part of an answer out of the loss;"
        " parquet and hf can (column loss_spans)"
    )


@pytest.mark.parametrize("to", FORMATS)
def test_only_what_passes_the_filters_is_exported(to: Format, tmp_path: Path) -> None:
    output = run(tmp_path, to, "correct")
    marker = orjson.loads((output / MARKER).read_bytes())
    assert marker["num_kept"] == 1
    assert marker["dropped"] == {"correct": 2}
    assert (marker["format"], marker["filters"], marker["mask"]) == (to, ["correct"], "all")
    if to not in {"parquet", "hf"}:
        assert len(rows_of(output)) == 1


def test_where_nothing_is_left_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match="no record is left to export; breach dropped 2; finish=length dropped 1"
    ):
        run(tmp_path, "messages", "breach", "finish=length")
    assert [path.name for path in tmp_path.iterdir()] == ["records.jsonl"]


@pytest.mark.parametrize("to", ["llamafactory", "sharegpt", "alpaca"])
@pytest.mark.parametrize("roles", [["user", "user"], ["developer", "user"], ["user", "system"]])
def test_a_conversation_that_a_format_cannot_hold_is_refused_not_left_out(
    to: Format, roles: list[str], tmp_path: Path
) -> None:
    messages = [{"role": role, "content": "x"} for role in roles]
    written(tmp_path / "records.jsonl", [RECORDS[0], record_of(unbroken(messages=messages))])
    with pytest.raises(InputError) as caught:
        run(tmp_path, to)
    message = str(caught.value)
    assert f"bags, sample 0: the roles are {', '.join(roles)}, not user and" in message
    assert f"{to} cannot hold such a conversation, but messages, parquet and hf can" in message
    assert not (tmp_path / "out").exists()


MARKUP = record_of(
    unbroken(
        output="In SVG it is <image>.",
        spans=[{"role": "student", "start": 0, "end": 21}],
        steps=[],
        correct=True,
    )
)


@pytest.mark.parametrize("to", ["llamafactory", "sharegpt", "alpaca"])
def test_texts_that_llamafactory_takes_for_media_are_left_out_and_counted(
    to: Format, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    written(tmp_path / "records.jsonl", [RECORDS[0], MARKUP])
    output = run(tmp_path, to, "correct")
    assert b"<image>" not in (output / "train.jsonl").read_bytes()
    marker = orjson.loads((output / MARKER).read_bytes())
    assert marker["num_kept"] == 1
    assert marker["dropped"] == {"no-media-words": 1, "correct": 0}
    (warning,) = caplog.messages
    assert warning == (
        "1 records have <image>, <video>, <audio> in their texts and are left out, because"
        " LLaMA-Factory takes these words for media; messages, parquet and hf keep them"
    )


@pytest.mark.parametrize("to", get_args(Format))
def test_answers_that_the_client_began_are_left_out_of_every_format(
    to: Format, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "First, "}]
    written(tmp_path / "records.jsonl", [RECORDS[0], record_of(unbroken(messages=asked))])
    marker = orjson.loads((run(tmp_path, to) / MARKER).read_bytes())
    assert (marker["num_kept"], marker["dropped"]) == (1, {"whole-answers": 1})
    assert "1 records continue an answer that the client began" in caplog.text


@pytest.mark.parametrize("to", ["messages", "parquet", "hf"])
def test_texts_with_markup_of_llamafactory_stay_in_the_formats_of_others(
    to: Format, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    written(tmp_path / "records.jsonl", [RECORDS[0], MARKUP])
    marker = orjson.loads((run(tmp_path, to) / MARKER).read_bytes())
    assert (marker["num_kept"], marker["dropped"]) == (2, {})
    assert caplog.messages == []


def test_texts_that_llamafactory_takes_for_control_tokens_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = [{"role": "user", "content": "What does <|im_end|> do?"}]
    written(tmp_path / "records.jsonl", [RECORDS[0], record_of(unbroken(messages=asked))])
    output = run(tmp_path, "llamafactory")
    assert orjson.loads((output / MARKER).read_bytes())["dropped"] == {"no-control-words": 1}
    (warning,) = caplog.messages
    assert warning.startswith("1 records have control words such as <|im_end|> in their texts")
    assert warning.endswith(
        "takes these words for control tokens; messages, parquet and hf keep them"
    )


def test_an_export_of_nothing_but_media_words_says_so(tmp_path: Path) -> None:
    written(tmp_path / "records.jsonl", [MARKUP])
    with pytest.raises(InputError, match="no record is left to export; no-media-words dropped 1"):
        run(tmp_path, "alpaca")


def test_one_record_a_question_is_chosen_among_those_that_the_format_holds(tmp_path: Path) -> None:
    good = record_of(unbroken(sample=1))
    written(tmp_path / "records.jsonl", [MARKUP, good])
    rows = rows_of(run(tmp_path, "alpaca", "unique=first"))
    assert [row["output"] for row in rows] == [good.output]


def test_a_line_that_is_no_record_leaves_what_was_there(tmp_path: Path) -> None:
    output = run(tmp_path, "messages")
    with (tmp_path / "records.jsonl").open("ab") as file:
        file.write(b"{}\n")
    before = (output / "train.jsonl").read_bytes()
    with pytest.raises(InputError, match=r"records\.jsonl, line 4: id is missing"):
        run(tmp_path, "messages", overwrite=True)
    assert (output / "train.jsonl").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "records.jsonl"]


def test_an_export_is_replaced_only_when_asked(tmp_path: Path) -> None:
    output = run(tmp_path, "parquet")
    with pytest.raises(
        OutputError, match="out is not empty; choose another folder, or use --overwri"
    ):
        run(tmp_path, "messages")
    run(tmp_path, "messages", overwrite=True)
    assert sorted(path.name for path in output.iterdir()) == [MARKER, "train.jsonl"]


def test_a_folder_that_holds_something_else_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(OutputError, match="is not an export, so it is not overwritten"):
        run(tmp_path, "messages", overwrite=True)
    assert (tmp_path / "out" / "thesis.tex").exists()


def test_an_empty_folder_is_filled_and_leftovers_of_a_killed_export_go(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "train.jsonl").touch()
    run(tmp_path, "messages")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "records.jsonl"]


def test_there_must_be_records(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.jsonl: no such file"):
        export(
            Export(
                source=tmp_path / "none.jsonl",
                output=tmp_path / "out",
                format="messages",
                filters=Filters(()),
            )
        )


@pytest.mark.parametrize("to", ["messages", "parquet"])
def test_memory_does_not_grow_with_the_file(to: Format, tmp_path: Path) -> None:
    line = RECORDS[0].to_json_line()
    with (tmp_path / "records.jsonl").open("wb") as file:
        for _ in range(5000):
            file.write(line)
    tracemalloc.start()
    try:
        run(tmp_path, to, "unique=best", "correct")
        (tmp_path / "out").rename(tmp_path / "first")
        tracemalloc.reset_peak()
        run(tmp_path, to, "correct")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    size = (tmp_path / "records.jsonl").stat().st_size
    assert size > 8e6
    assert peak < size / 2
