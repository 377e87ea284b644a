"""Exports records as training data, in the formats of the trainers.

Records are read one at a time. In every format the output appears character for character, and a
conversation that the format cannot hold is an error, never left out. Only texts that LLaMA-Factory
would take for media or for control tokens are left out of its formats, and counted.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Literal, Protocol, get_args

import orjson

from synth_client.errors import InputError
from synth_client.files.atomic import atomic_folder, output_errors
from synth_client.files.record_file import read_records
from synth_client.training_data.filters import (
    MEDIA_WORDS,
    NO_CONTROL_WORDS,
    NO_MEDIA_WORDS,
    WHOLE_ANSWERS,
    Filters,
    Kept,
)
from synth_client.training_data.masks import Mask
from synth_client.training_data.parquet import TableWriter, hf_writer, parquet_writer
from trajectory_records.record import Message, Record

_log = logging.getLogger(__name__)

Format = Literal["llamafactory", "sharegpt", "alpaca", "messages", "parquet", "hf"]
MARKER: Final = ".motab-export.json"
DATASET_INFO: Final = "dataset_info.json"
DATASET_NAME: Final = "motab"

_TABLES: Final[Mapping[str, Callable[[Path, Mask], Any]]] = {
    "parquet": parquet_writer,
    "hf": hf_writer,
}
_JSON_LINES: Final = "train.jsonl"
# LLaMA-Factory's own formats. Its templates for models that see or hear count media words in every
# text, and end the whole training where there are not as many pictures, films and sounds. Its
# tokenizers read control words in every text as control tokens, so a student would learn to end its
# turn there.
_OF_LLAMA_FACTORY: Final = frozenset({"llamafactory", "sharegpt", "alpaca"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """The records to export, their format, and the folder (`output`) to write."""

    source: Path
    output: Path
    format: Format
    filters: Filters
    mask: Mask = "all"
    overwrite: bool = False


_LEFT_OUT: Final[Mapping[str, str]] = {
    NO_MEDIA_WORDS: (
        f"have {', '.join(MEDIA_WORDS)} in their texts and are left out, because LLaMA-Factory"
        " takes these words for media; messages, parquet and hf keep them"
    ),
    NO_CONTROL_WORDS: (
        "have control words such as <|im_end|> in their texts and are left out, because"
        " LLaMA-Factory takes these words for control tokens; messages, parquet and hf keep them"
    ),
    WHOLE_ANSWERS: (
        "continue an answer that the client began and are left out, because trainers take its"
        " beginning for a turn of its own"
    ),
}


class _Writer(Protocol):
    def write(self, record: Record) -> None: ...


def export(job: Export) -> Kept:
    """Write the folder as a whole, or not at all.

    Raises `InputError` if no record is left, a record does not fit the format, or the format lacks
    the mask, and `OutputError` if the folder cannot be written.
    """
    check_mask(job.format, job.mask)
    kept, num_raw = Kept(), 0
    filters = filters_of(job)
    with atomic_folder(job.output, MARKER, overwrite=job.overwrite) as folder:
        with output_errors(job.output), _open_writer(folder, job) as writer:
            for record, passes in filters.split(lambda: read_records(job.source), kept):
                if passes:
                    _write(writer, record, job)
                    num_raw += record.raw_prompt
        _note_left_out(job, kept)
        _note_raw_prompts(job, num_raw)
        if not kept.num_kept:
            dropped = "".join(f"; {name} dropped {n}" for name, n in kept.dropped.items())
            raise InputError(f"{job.source}: no record is left to export{dropped}")
        with output_errors(job.output):
            _mark(folder, job, kept)
    return kept


def filters_of(job: Export) -> Filters:
    """Return the filters that choose the records, with those that the format needs."""
    filters = job.filters.after(WHOLE_ANSWERS)
    if job.format in _OF_LLAMA_FACTORY:
        filters = filters.after(NO_MEDIA_WORDS, NO_CONTROL_WORDS)
    return filters


def _note_left_out(job: Export, kept: Kept) -> None:
    """Warn of records that our own filters left out; one that dropped nothing is not mentioned."""
    for name, reason in _LEFT_OUT.items():
        if name in job.filters.names or name not in kept.dropped:
            continue
        number = kept.dropped[name]
        if number:
            _log.warning("%s records %s", f"{number:,}", reason)
        else:
            del kept.dropped[name]


def _note_raw_prompts(job: Export, number: int) -> None:
    """Warn if prompts that had no chat template will get one in training."""
    if number and job.format not in _TABLES:
        answers = (
            "1 record answers a raw prompt"
            if number == 1
            else f"{number:,} records answer raw prompts"
        )
        _log.warning(
            "%s, which %s can only hold as a user's message, so the trainer wraps it in its chat"
            " template; parquet and hf mark such records (raw_prompt)",
            answers,
            job.format,
        )


def check_mask(format: Format, mask: Mask) -> None:  # noqa: A002 - its name everywhere
    """Raise `InputError` if the format cannot say which text to learn from."""
    if mask != "all" and format not in _TABLES:
        raise InputError(
            f"--mask {mask}: {format} cannot leave a part of an answer out of the loss;"
            f" {' and '.join(_TABLES)} can (column loss_spans)"
        )


def _write(writer: _Writer, record: Record, job: Export) -> None:
    try:
        writer.write(record)
    except ValueError as error:
        raise InputError(
            f"{job.source}: {record.id}, sample {record.sample}: {error}; {job.format} cannot hold"
            " such a conversation, but messages, parquet and hf can"
        ) from error


def _mark(folder: Path, job: Export, kept: Kept) -> None:
    content = {
        "source": str(job.source.resolve()),
        "format": job.format,
        "mask": job.mask,
        "filters": job.filters.names,
        "num_kept": kept.num_kept,
        "dropped": dict(kept.dropped),
        "motab_version": version("motab"),
    }
    (folder / MARKER).write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2))


@contextmanager
def _open_writer(folder: Path, job: Export) -> Iterator[_Writer]:
    if job.format in _TABLES:
        table: TableWriter = _TABLES[job.format](folder, job.mask)
        with table:
            yield table
        return
    with (folder / _JSON_LINES).open("wb") as file:
        convert = _CONVERTERS[job.format]

        class Lines:
            def write(self, record: Record) -> None:
                file.write(orjson.dumps(convert(record), option=orjson.OPT_APPEND_NEWLINE))

        yield Lines()
    if job.format == "llamafactory":
        info = orjson.dumps(_LLAMAFACTORY_INFO, option=orjson.OPT_INDENT_2)
        (folder / DATASET_INFO).write_bytes(info)


@dataclass(frozen=True, slots=True)
class _Turns:
    """A conversation in the shape that most trainers expect: `asked` ends with the question."""

    system: str | None
    history: tuple[tuple[str, str], ...]
    asked: str


def _turns(record: Record) -> _Turns:
    """Split a record's messages; raises ValueError if the conversation has another shape."""
    messages = list(record.messages)
    system = messages.pop(0).content if messages and messages[0].role == "system" else None
    wanted = ["user", "assistant"] * (len(messages) // 2) + ["user"]
    there = [message.role for message in messages]
    if there != wanted:
        raise ValueError(
            f"the roles are {', '.join(message.role for message in record.messages)},"
            " not user and assistant in turn after at most one system message"
        )
    texts = [message.content for message in messages]
    return _Turns(system, tuple(zip(texts[:-1:2], texts[1::2], strict=True)), texts[-1])


def _messages(record: Record) -> dict[str, Any]:
    answer = Message(role="assistant", content=record.output)
    return {"messages": [message.model_dump() for message in (*record.messages, answer)]}


def _llamafactory(record: Record) -> dict[str, Any]:
    _turns(record)  # LLaMA-Factory would silently drop other shapes
    return _messages(record)


def _sharegpt(record: Record) -> dict[str, Any]:
    _turns(record)
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    spoken = [(names[message.role], message.content) for message in record.messages]
    spoken.append(("gpt", record.output))
    return {"conversations": [{"from": name, "value": text} for name, text in spoken]}


def _alpaca(record: Record) -> dict[str, Any]:
    turns = _turns(record)
    return {
        "instruction": turns.asked,
        "input": "",
        "output": record.output,
        "system": turns.system or "",
        "history": turns.history,
    }


_CONVERTERS: Final[Mapping[str, Callable[[Record], dict[str, Any]]]] = {
    "llamafactory": _llamafactory,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "messages": _messages,
}
_LLAMAFACTORY_INFO: Final = {
    DATASET_NAME: {
        "file_name": _JSON_LINES,
        "formatting": "sharegpt",
        "columns": {"messages": "messages"},
        "tags": {
            "role_tag": "role",
            "content_tag": "content",
            "user_tag": "user",
            "assistant_tag": "assistant",
            "system_tag": "system",
        },
    }
}
FORMATS: Final[tuple[Format, ...]] = get_args(Format)
