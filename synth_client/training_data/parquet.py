"""Exports everything: to Parquet files, and to folders that `datasets` loads from disk.

The columns are the record's fields; `params`, `sampling`, `chat_template_kwargs`,
`scoring_fallbacks` and a verification's `scores` as JSON text, because their names vary; and
`loss_spans`, the characters of the output to learn from.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import orjson

from synth_client.questions.parquet_and_hub import library
from synth_client.training_data.masks import Mask, loss_spans
from trajectory_records.record import MotabUsage, Record

_PARQUET_NAME: Final = "train.parquet"
_BATCH_RECORDS: Final = 256
_AS_JSON: Final = ("params", "sampling", "chat_template_kwargs", "scoring_fallbacks")


class TableWriter:
    """Writes records to a Parquet file in batches, and passes the file to `finish` at the end."""

    def __init__(self, path: Path, mask: Mask, finish: Callable[[Path], None]) -> None:
        self._path, self._mask, self._finish = path, mask, finish
        self._rows: list[dict[str, Any]] = []
        parquet = library("pyarrow.parquet", "writing Parquet")
        self._writer = parquet.ParquetWriter(path, _schema(), compression="zstd")

    def write(self, record: Record) -> None:
        self._rows.append(row_of(record, self._mask))
        if len(self._rows) == _BATCH_RECORDS:
            self._flush()

    def _flush(self) -> None:
        arrow = library("pyarrow", "writing Parquet")
        if self._rows:
            self._writer.write_batch(arrow.RecordBatch.from_pylist(self._rows, schema=_schema()))
            self._rows.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is None:
            self._flush()
        self._writer.close()
        if exc_type is None:
            self._finish(self._path)


def parquet_writer(folder: Path, mask: Mask) -> TableWriter:
    """Return a writer of one Parquet file."""
    return TableWriter(folder / _PARQUET_NAME, mask, lambda _path: None)


def hf_writer(folder: Path, mask: Mask) -> TableWriter:
    """Return a writer for `datasets.load_from_disk`, by way of a temporary Parquet file."""
    datasets = library("datasets", "writing a dataset")

    def save(parquet: Path) -> None:
        with _without_progress(datasets):
            cache = folder / ".cache"
            found = datasets.Dataset.from_parquet(str(parquet), cache_dir=str(cache))
            found.save_to_disk(str(folder))
            shutil.rmtree(cache)
        parquet.unlink()

    return TableWriter(folder / f".{_PARQUET_NAME}", mask, save)


def row_of(record: Record, mask: Mask) -> dict[str, Any]:
    """Return the record as a row of the table."""
    fields = record.model_dump()
    for name in _AS_JSON:
        if fields[name] is not None:
            fields[name] = orjson.dumps(fields[name]).decode()
    if record.verification is not None:
        scores = dict(record.verification.scores)
        fields["verification"]["scores"] = orjson.dumps(scores).decode()
    fields["loss_spans"] = [asdict(span) for span in loss_spans(record, mask)]
    return fields


@contextmanager
def _without_progress(datasets: Any) -> Iterator[None]:  # noqa: ANN401
    was_on = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if was_on:
            datasets.enable_progress_bars()


@cache
def _schema() -> Any:  # noqa: ANN401
    arrow = library("pyarrow", "writing Parquet")
    text, count, real, truth = arrow.string(), arrow.int64(), arrow.float64(), arrow.bool_()

    def listed(**fields: object) -> object:
        return arrow.list_(arrow.struct(fields))

    motab = dict.fromkeys(MotabUsage.model_fields, count)
    counts = dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"), count)
    usage = arrow.struct({**counts, "motab": arrow.struct(motab)})
    numbers = dict.fromkeys(("value", "entropy", "boundary", "td_error"), real)
    logprobs = arrow.struct({"ends": arrow.list_(count), "logprobs": arrow.list_(real)})
    return arrow.schema(
        {
            "id": text,
            "sample": count,
            "messages": listed(role=text, content=text),
            "output": text,
            "spans": listed(role=text, start=count, end=count),
            "method": text,
            "params": text,
            "models": arrow.struct({"student": text, "teacher": text}),
            "scoring": text,
            "breach": count,
            "bifurcation": count,
            "breaches": listed(breach=count, bifurcation=count),
            "steps": listed(
                start=count,
                end=count,
                **numbers,
                safe=truth,
                student_tokens=count,
                teacher_tokens=count,
                author=text,
                text=text,
            ),
            "finish_reason": text,
            "usage": usage,
            "answer": text,
            "predicted": text,
            "correct": truth,
            "attempts": count,
            "seconds": real,
            "motab_version": text,
            "verification": arrow.struct({"rule": text, "fault": text, "scores": text}),
            "quality": arrow.list_(text),
            "request_id": text,
            "response_id": text,
            "raw_prompt": truth,
            "scoring_fallbacks": text,
            "limited_by": arrow.struct({"model": text, "limit": text, "tokens": count}),
            "chosen": arrow.struct(
                {
                    "index": count,
                    "by": text,
                    "answers": arrow.list_(text),
                    "lost": arrow.list_(count),
                }
            ),
            "sampling": text,
            "chat_template_kwargs": text,
            "reasoning_effort": text,
            "wasted": usage,
            "token_logprobs": arrow.struct({"student": logprobs, "teacher": logprobs}),
            "loss_spans": listed(start=count, end=count),
        }
    )
