"""Marks what is learned of every example and by how much: masks by role and weights by fit.

Each example's line gets the field `learn` next to its messages; it describes the answer by
character. `trainer.foreign.weigh_tokens` turns that into labels and weights by token in the
trainer's environment, because only there LLaMA-Factory's own use of the tokenizer is known.
"""

from itertools import accumulate
from pathlib import Path
from typing import Any, Final

import orjson

from synth_client.files.atomic import AtomicFile, output_errors
from synth_client.files.record_file import read_records
from synth_client.training_data.export import Export, export, filters_of
from synth_client.training_data.filters import Filters, Kept
from synth_client.training_data.masks import loss_spans, step_ends
from trainer.errors import RecipeError
from trainer.training.recipe import DataLoss, WeightedLoss
from trajectory_records.parts import ModelLogprobs
from trajectory_records.record import Record

COLUMN: Final = "learn"
LINES: Final = "train.jsonl"


def export_llamafactory(source: Path, folder: Path, filters: Filters) -> Kept:
    """Write a LLaMA-Factory export in place of an earlier one."""
    return export(_job(source, folder, filters))


def _job(source: Path, folder: Path, filters: Filters) -> Export:
    return Export(
        source=source, output=folder, format="llamafactory", filters=filters, overwrite=True
    )


def export_with_spans(source: Path, folder: Path, filters: Filters, loss: DataLoss) -> Kept:
    """Write a LLaMA-Factory export whose lines mark the learned parts of the answer.

    Records in which the mask leaves nothing are dropped and counted. Raises `RecipeError` if none
    is left, or if a record lacks the log-probabilities for its weights.
    """
    kept = export_llamafactory(source, folder, filters)
    path = folder / LINES
    num_empty = 0
    with output_errors(path), path.open("rb") as lines, AtomicFile(path) as chosen:
        split = filters_of(_job(source, folder, filters)).split(
            lambda: read_records(source), Kept()
        )
        passed = (record for record, passes in split if passes)
        for line, record in zip(lines, passed, strict=True):
            if not loss_spans(record, loss.mask):
                num_empty += 1
                continue
            fields = {**orjson.loads(line), COLUMN: learned(record, loss)}
            chosen.file.write(orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE))
        if num_empty == kept.num_kept:
            raise RecipeError(
                f"loss.mask: {loss.mask} leaves nothing to learn in any of the {num_empty}"
                f" record(s) in {source}"
            )
        chosen.publish()
    kept.num_kept -= num_empty
    if num_empty:
        kept.dropped[f"mask: {loss.mask}"] += num_empty
    return kept


def learned(record: Record, loss: DataLoss) -> dict[str, Any]:
    """Return the field `learn` of a record.

    `units` cover the output in order, each with its `end` and whether it is `learned` and
    `weighted`. At level `step` each of the teacher's steps is a unit. `student` and `teacher`, None
    without weights, hold the natural log-probability of the output's first `ends[i]` characters in
    `sums[i]`; `ends` ascend strictly.
    """
    is_weighted = isinstance(loss, WeightedLoss)
    spans = loss_spans(record, loss.mask)
    units = []
    for span in record.spans:
        is_learned = any(one.start <= span.start and span.end <= one.end for one in spans)
        by_fit = is_weighted and is_learned and span.role == "teacher"
        by_step = by_fit and isinstance(loss, WeightedLoss) and loss.level == "step"
        ends = step_ends(record, span) if by_step else [span.end]
        units += [{"end": end, "learned": is_learned, "weighted": by_fit} for end in ends]
    found: dict[str, Any] = {"output": record.output, "units": units}
    if not is_weighted:
        return found | {"student": None, "teacher": None}
    logprobs = record.token_logprobs
    if logprobs is None:
        raise RecipeError(
            f"loss.kind: weighted needs token_logprobs in every record, but {record.id}, sample"
            f" {record.sample} has none; motab score adds them"
        )
    return found | {"student": _sums(logprobs.student), "teacher": _sums(logprobs.teacher)}


def _sums(logprobs: ModelLogprobs) -> dict[str, Any]:
    """Sum log-probabilities by end; tokens inside a character are added to the one that ends it."""
    sums: dict[int, float] = {}
    for end, total in zip(logprobs.ends, accumulate(logprobs.logprobs), strict=True):
        sums.setdefault(end, total)
    # Tokens within the first character have not completed it.
    sums.pop(0, None)
    return {"ends": list(sums), "sums": list(sums.values())}
