"""Filters records: `correct`, `tokens<=8000`, `unique=shortest` and so on.

A record passes when every filter lets it through. Filters are applied in the order given, and the
first that rejects a record is counted as the one that dropped it. All but `unique` look at one
record. `unique` keeps one record per question among those that passed the filters before it, which
takes reading the records twice.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Final, Literal, get_args

import orjson

from proxy.core.types import FinishReason, Role
from proxy.near_names import near_name
from synth_client.errors import InputError
from synth_client.files.spill_table import SpillTable
from trajectory_records.record import Record

Keep = Literal["first", "shortest", "best"]
Records = Callable[[], Iterator[Record]]
"""Each call starts over from the first record."""

NO_MEDIA_WORDS: Final = "no-media-words"
WHOLE_ANSWERS: Final = "whole-answers"
MEDIA_WORDS: Final = ("<image>", "<video>", "<audio>")
"""What LLaMA-Factory takes for a picture, a film or a sound, wherever it stands in a text."""
NO_CONTROL_WORDS: Final = "no-control-words"
# Their names in ChatML and Llama 3, DeepSeek, Llama 2, Mistral and Gemma. `<think>` and the tags of
# tool calls are a part of an answer.
_CONTROL_WORD: Final = re.compile(
    r"<\|\w{1,40}\|>|<\uff5c[^\s\uff5c]{1,40}\uff5c>|</?s>|\[/?INST\]|<</?SYS>>"
    r"|<(?:start|end)_of_turn>|<(?:bos|eos|pad|unk)>"
)
_PARTS: Final = re.compile(r"([^<>=]*)([<>]?=?)(.*)", re.DOTALL)
_BOUND: Final = re.compile(r"([a-z]+)(<=|>=)([0-9]+(?:\.[0-9]+)?)")


@dataclass(frozen=True, slots=True)
class Filter:
    """One filter. `unique` has no `passes`; its `keep` says which record of a question it keeps."""

    name: str
    passes: Callable[[Record], bool] | None
    keep: Keep | None = None


@dataclass(slots=True)
class Kept:
    """Counts of the records so far: `dropped` counts them by filter, in order."""

    num_kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    @property
    def num_dropped(self) -> int:
        return self.dropped.total()


class Filters:
    """Filters in order. Raises `InputError` for a text that is not a filter."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._filters = tuple(parse_filter(text) for text in dict.fromkeys(texts))
        if sum(one.keep is not None for one in self._filters) > 1:
            raise InputError("--filter unique is given twice with different values")

    def after(self, *texts: str) -> "Filters":
        """Return these filters with others before them."""
        return Filters((*texts, *self.names))

    @property
    def names(self) -> tuple[str, ...]:
        """The filters' texts as given, without repeats."""
        return tuple(one.name for one in self._filters)

    def split(self, records: Records, kept: Kept) -> Iterator[tuple[Record, bool]]:
        """Yield every record and whether it passes, and count it in `kept`."""
        kept.dropped.update(dict.fromkeys(self.names, 0))
        chosen = self._chosen(records)
        for index, record in enumerate(records()):
            dropper = self._dropper(record, index, chosen)
            if dropper is None:
                kept.num_kept += 1
            else:
                kept.dropped[dropper] += 1
            yield record, dropper is None

    def _dropper(self, record: Record, index: int, chosen: "_Chosen | None") -> str | None:
        """Return the filter that drops the record, None if it passes."""
        for one in self._filters:
            if one.passes is None:
                passes = chosen is not None and chosen.is_chosen(record, index)
            else:
                passes = one.passes(record)
            if not passes:
                return one.name
        return None

    def _chosen(self, records: Records) -> "_Chosen | None":
        """Read all records once to choose, if a filter needs that."""
        names = [one.keep for one in self._filters]
        keep = next((keep for keep in names if keep is not None), None)
        if keep is None:
            return None
        before = self._filters[: names.index(keep)]
        chosen = _Chosen(keep)
        for index, record in enumerate(records()):
            if all(one.passes is not None and one.passes(record) for one in before):
                chosen.offer(record, index)
        return chosen


class _Chosen:
    """The record that is kept for each question."""

    def __init__(self, keep: Keep) -> None:
        self._rank = _RANKS[keep]
        self._best = SpillTable("rank REAL", "place INTEGER")

    def offer(self, record: Record, index: int) -> None:
        """Consider a record: the lowest rank wins; the first of equal ranks stays."""
        key, rank = _key(record), self._rank(record)
        best = self._best.get(key)
        if best is None or rank < best[0]:
            self._best.put(key, rank, index)

    def is_chosen(self, record: Record, index: int) -> bool:
        best = self._best.get(_key(record))
        return best is not None and best[1] == index


def parse_filter(text: str) -> Filter:
    """Parse a filter. Raises `InputError` with the known filters if there is no such filter."""
    if text in _PLAIN:
        return Filter(text, _PLAIN[text])
    name, sign, value = text.partition("=")
    if sign and name == "finish" and value in get_args(FinishReason):
        return Filter(text, lambda record: record.finish_reason == value)
    if sign and name == "unique":
        for keep in get_args(Keep):
            if value == keep:
                return Filter(text, None, keep)
    bound = _BOUND.fullmatch(text)
    if bound is None or bound[1] not in _NUMBERS:
        message = f"--filter {text}: no such filter; known filters are {known_filters()}"
        raise InputError(message + _meant(text))
    number, limit = _NUMBERS[bound[1]], float(bound[3])
    if bound[2] == "<=":
        return Filter(text, lambda record: _at_most(number(record), limit))
    return Filter(text, lambda record: _at_most(limit, number(record)))


def known_filters() -> str:
    """List all filters, for messages and help."""
    bounds = ", ".join(f"{name}<=N" for name in _NUMBERS)
    keeps, finishes = "|".join(get_args(Keep)), "|".join(get_args(FinishReason))
    return f"{', '.join(_PLAIN)}, finish={finishes}, unique={keeps}, {bounds} (or >=)"


def _meant(text: str) -> str:
    """Return a question about the filter that a misspelt one was meant to be."""
    name, sign, value = _PARTS.findall(text)[0]
    name = near_name(name, [*_PLAIN, *_NUMBERS, "finish", "unique"]) or name
    if values := {"finish": get_args(FinishReason), "unique": get_args(Keep)}.get(name):
        value = near_name(value, values) or value
    meant = name + sign + value
    return "" if meant == text else f"; did you mean '{meant}'?"


def _at_most(small: float | None, large: float | None) -> bool:
    return small is not None and large is not None and small <= large


def _share(role: Role) -> Callable[[Record], float | None]:
    def share(record: Record) -> float | None:
        length = sum(span.end - span.start for span in record.spans if span.role == role)
        return length / len(record.output) if record.output else None

    return share


def _depth(record: Record) -> int | None:
    return max((one.depth for one in record.all_breaches), default=None)


def _mean_value(record: Record) -> float | None:
    values = [step.value for step in record.steps if step.value is not None]
    return sum(values) / len(values) if values else None


def _key(record: Record) -> bytes:
    messages = [message.model_dump() for message in record.messages]
    return blake2b(orjson.dumps(messages), digest_size=16).digest()


def _texts(record: Record) -> list[str]:
    return [record.output, *(message.content for message in record.messages)]


def _has_no_media_words(record: Record) -> bool:
    return not any(word in text for text in _texts(record) for word in MEDIA_WORDS)


def _has_no_control_words(record: Record) -> bool:
    return not any(map(_CONTROL_WORD.search, _texts(record)))


_PLAIN: Final[Mapping[str, Callable[[Record], bool]]] = {
    "correct": lambda record: record.correct is True,
    "breach": lambda record: record.breach is not None,
    "no-breach": lambda record: record.breach is None,
    "sound": lambda record: not record.flags(),
    NO_MEDIA_WORDS: _has_no_media_words,
    WHOLE_ANSWERS: lambda record: record.messages[-1].role != "assistant",
    NO_CONTROL_WORDS: _has_no_control_words,
}
_NUMBERS: Final[Mapping[str, Callable[[Record], float | None]]] = {
    "chars": lambda record: len(record.output),
    "tokens": lambda record: record.usage.completion_tokens,
    "value": _mean_value,
    "breaches": lambda record: len(record.all_breaches),
    "bifurcation": lambda record: record.bifurcation,
    "depth": _depth,
    "student": _share("student"),
    "flawed": _share("flawed"),
    "teacher": _share("teacher"),
}
_RANKS: Final[Mapping[Keep, Callable[[Record], float]]] = {
    "first": lambda _record: 0.0,
    "shortest": lambda record: float(len(record.output)),
    "best": lambda record: -(_mean_value(record) or 0.0),
}
