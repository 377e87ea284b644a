"""Loads a benchmark: problems with known answers, in any format the synthesis client can read."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import islice
from types import MappingProxyType
from typing import Any, Final

import orjson

from synth_client.errors import InputError
from synth_client.judging.rules import CHOICE, MATH
from synth_client.judging.verifier import Program
from synth_client.questions.dataset import Cells, Dataset, open_dataset
from synth_client.questions.layout import Columns
from synth_client.questions.question import BadRow, Question
from trainer.evaluation.multiple_choice import has_choices, laid_out

PLACE: Final = "{problem}"
_DIGEST_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class Problem:
    """Identifies a problem in results; the benchmark may lack `level` and `subject` (None).

    `weights` gives, for each score of the judge, how much the problem counts in the mean; it is
    empty if answers are only right or wrong.
    """

    id: str
    level: str | None
    subject: str | None
    weights: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Benchmark:
    """`dataset` asks the problems in the order of `problems`, each worded by `prompt`.

    `rule` judges the answers unless another rule is chosen.
    `digest` is 16 bytes of BLAKE2b over ids, messages and answers, in hexadecimal: two results
    with the same digest are about the same problems, asked in the same words.
    """

    name: str
    dataset: Dataset
    prompt: str
    rule: str | Program
    problems: tuple[Problem, ...]
    digest: str


def load_benchmark(
    source: str,
    *,
    prompt: str = PLACE,
    limit: int | None = None,
    split: str = "test",
    subset: str | None = None,
    columns: Columns = Columns(),  # noqa: B008 - it is frozen
) -> Benchmark:
    """Read all rows first, because one bad row would make it another benchmark.

    `prompt` is the last message's text, with `{problem}` in the place of the problem; `columns` are
    those to read, where the benchmark's own names are not recognised. Raises
    `InputError`, naming the row, if a row has no question, no answer, or another row's id.
    """
    found = open_dataset(source, limit=limit, split=split, subset=subset, columns=columns)
    there = list(islice(found.cells(), limit))
    if columns.question is None:
        are_choices = all(cells.columns and has_choices(cells.columns) for cells in there)
        there = [_as_synth_reads(cells, found.name) for cells in there]
    else:
        are_choices = False
    rule = CHOICE if are_choices else MATH
    return benchmark_of(_over(found, there, columns), prompt=prompt, rule=rule)


def benchmark_of(
    found: Dataset,
    *,
    prompt: str,
    rule: str | Program,
    weights: Mapping[str, Mapping[str, float]] = MappingProxyType({}),
) -> Benchmark:
    """Return the benchmark of rows with the columns of synth. Raises as `load_benchmark` does.

    `weights` are the problems' weights, by id.
    """
    problems: dict[str, Problem] = {}
    asked = []
    digest = blake2b(digest_size=_DIGEST_BYTES)
    for row, cells in zip(found.rows(), found.cells(), strict=True):
        question = _checked(row, f"{found.name}, {cells.place}")
        if question.id in problems:
            raise InputError(f"{found.name}, {cells.place}: repeats the id {question.id}")
        problems[question.id] = _problem(question.id, cells, found.name, weights.get(question.id))
        columns = _columns(question, prompt)
        digest.update(orjson.dumps(columns, option=orjson.OPT_APPEND_NEWLINE))
        asked.append(Cells(cells.place, columns))
    return Benchmark(
        name=found.name,
        dataset=_over(found, asked, Columns()),
        prompt=prompt,
        rule=rule,
        problems=tuple(problems.values()),
        digest=digest.hexdigest(),
    )


def _over(dataset: Dataset, cells: list[Cells], columns: Columns) -> Dataset:
    return replace(
        dataset, cells=lambda: iter(cells), count_all=lambda: len(cells), columns=columns
    )


def _as_synth_reads(cells: Cells, benchmark: str) -> Cells:
    """Rename columns, because benchmarks use their own names: MATH-500 calls the id `unique_id`."""
    columns = cells.columns
    if columns is None:
        return cells
    if has_choices(columns):
        try:
            return replace(cells, columns=laid_out(columns))
        except ValueError as error:
            raise InputError(f"{benchmark}, {cells.place}: {error}") from error
    if columns.get("id") in (None, "") and "unique_id" in columns:
        return replace(cells, columns={**columns, "id": columns["unique_id"]})
    return cells


def _checked(row: Question | BadRow, place: str) -> Question:
    if isinstance(row, BadRow):
        raise InputError(f"{place}: {row.fault}")
    if row.answer is None or not row.answer.strip():
        raise InputError(f"{place}: no answer; every problem of a benchmark needs one")
    return row


def _columns(question: Question, prompt: str) -> Mapping[str, Any]:
    messages = [message.model_dump() for message in question.messages]
    messages[-1]["content"] = prompt.replace(PLACE, messages[-1]["content"])
    return {"id": question.id, "messages": messages, "answer": question.answer}


def _problem(
    name: str, cells: Cells, benchmark: str, weights: Mapping[str, float] | None
) -> Problem:
    columns = cells.columns or {}
    level, subject = (
        _label(columns.get(column), column, f"{benchmark}, {cells.place}")
        for column in ("level", "subject")
    )
    return Problem(name, level, subject, weights or {})


def _label(value: object, column: str, place: str) -> str | None:
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a Parquet column with gaps
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, str | int) and not isinstance(value, bool):
        return str(value).strip()
    raise InputError(f"{place}: {column} is neither text nor a whole number")
