"""Samples records for the trajectory viewer of a report, and packs them into chunks.

Only this file and `assets/viewer.js` know the format: an index with one short entry for each
trajectory, and chunks of whole trajectories, which the page unpacks when one of them is viewed.
"""

import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from synth_client.report.page import Block, block
from synth_client.report.text_logprobs import MODELS, BothModels
from trajectory_records.record import Record

_INDEX_CHARS: Final = 200
_CHUNK_BYTES: Final = 512 * 1024
_MAX_WINDOWS: Final = 120
_MIN_WINDOW: Final = 8


@dataclass(frozen=True, slots=True)
class _Sampled:
    ordinal: int
    entry: tuple[Any, ...]
    packed: bytes
    size: int


@dataclass(slots=True)
class Sample:
    """At most `max_size` records, compressed; every record is kept with the same probability.

    The same records in the same order give the same sample.
    """

    max_size: int
    num_seen: int = 0
    _kept: list[_Sampled] = field(default_factory=list)
    _random: random.Random = field(default_factory=lambda: random.Random(0))  # noqa: S311

    def add(self, record: Record) -> None:
        """Add a record, which may be kept."""
        ordinal = self.num_seen
        self.num_seen += 1
        slot = ordinal if ordinal < self.max_size else self._random.randrange(ordinal + 1)
        if slot >= self.max_size:
            return
        view = orjson.dumps(view_of(record))
        sampled = _Sampled(ordinal, entry_of(record), zlib.compress(view, 1), len(view))
        if slot == len(self._kept):
            self._kept.append(sampled)
        else:
            self._kept[slot] = sampled

    def __len__(self) -> int:
        return len(self._kept)

    def blocks(self) -> Iterator[Block]:
        """Yield the chunks `chunk-0`, `chunk-1`, ... and, last, the `index`."""
        index: list[tuple[Any, ...]] = []
        chunk: list[bytes] = []
        num_chunks = size = 0
        for sampled in sorted(self._kept, key=lambda one: one.ordinal):
            if size and size + sampled.size > _CHUNK_BYTES:
                yield _chunk(num_chunks, chunk)
                chunk, size, num_chunks = [], 0, num_chunks + 1
            index.append((*sampled.entry, num_chunks, len(chunk)))
            chunk.append(zlib.decompress(sampled.packed))
            size += sampled.size
        if chunk:
            yield _chunk(num_chunks, chunk)
        yield block("index", index)


def _chunk(number: int, views: list[bytes]) -> Block:
    return block(f"chunk-{number}", [orjson.Fragment(view) for view in views])


def entry_of(record: Record) -> tuple[Any, ...]:
    """A row of the list: id, sample, shortened question, answers, breach, bifurcation, outcome."""
    return (
        record.id,
        record.sample,
        record.question[:_INDEX_CHARS],
        record.predicted,
        record.answer,
        record.breach,
        record.bifurcation,
        record.correct,
        len(record.steps),
    )


def view_of(record: Record) -> dict[str, Any]:
    """A trajectory as the viewer draws it.

    Texts are whole strings: a record's offsets count code points, JavaScript counts UTF-16 units.
    """
    usage = record.usage.motab
    return {
        "messages": [[message.role, message.content] for message in record.messages],
        "method": record.method,
        "params": {
            name: value
            for name, value in record.params.items()
            if name in {"base_threshold", "entropy_scale", "boundary", "backtrack", "stitch"}
        },
        "models": [record.models.student, record.models.teacher],
        "steps": [_step_of(record, index) for index in range(len(record.steps))],
        "rest": _rest_of(record),
        "logprobs": _windows_of(record),
        "finish": record.finish_reason,
        "tokens": [
            usage.student_tokens,
            usage.student_tokens_discarded,
            usage.teacher_scored_tokens,
            usage.teacher_tokens,
        ],
        "attempts": record.attempts,
        "seconds": record.seconds,
    }


def _step_of(record: Record, index: int) -> list[Any]:
    step = record.steps[index]
    return [
        record.step_text(index),
        record.step_role(index),
        record.step_verdict(index),
        step.value,
        step.boundary,
        step.entropy,
        step.td_error,
        step.start is None,
        None if (way := record.step_scoring(index)) == record.scoring else way,
    ]


def _windows_of(record: Record) -> dict[str, Any] | None:
    """Each model's mean log-probability per token, in windows of equally many characters."""
    if record.token_logprobs is None or not record.output:
        return None
    length = len(record.output)
    width = max(_MIN_WINDOW, -(-length // _MAX_WINDOWS))
    readings = BothModels.of(record.token_logprobs)
    means: dict[str, list[float | None]] = {model: [] for model in MODELS}
    for model in MODELS:
        for start in range(0, length, width):
            num, total = readings.by(model).tokens(start, min(start + width, length))
            means[model].append(round(total / num, 3) if num else None)
    parts = [(span.role, span.start, span.end) for span in record.spans]
    return {"width": width, "length": length, "parts": parts, **means}


def _rest_of(record: Record) -> list[tuple[str, str]]:
    """The output after the last step, by role."""
    end = max((step.end for step in record.steps if step.end is not None), default=0)
    return [
        (span.role, record.output[max(span.start, end) : span.end])
        for span in record.spans
        if span.end > end
    ]
