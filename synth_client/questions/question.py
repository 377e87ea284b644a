"""Defines a question, how it is asked, and the key under which its answer is stored."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Final

import orjson
from pydantic import JsonValue

from trajectory_records.record import Message, Record

_KEY_BYTES: Final = 16
_OF_TEMPLATES: Final = frozenset({"chat_template_kwargs", "reasoning_effort"})
TOP_LEVEL: Final = _OF_TEMPLATES | {
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
}
"""Fields that stand next to the `motab` object in a request, and that other servers know, too."""


@dataclass(frozen=True, slots=True)
class Question:
    """A conversation to answer, with the reference answer if one is known."""

    id: str
    messages: tuple[Message, ...]
    answer: str | None = None


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row without a usable question. `place` is its position, `id` the id it would have had."""

    id: str
    place: str
    fault: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Synthesis:
    """The way in which every question of a run is asked.

    `params` is the request's `motab` object; the proxy decides whatever it leaves out. `fields` are
    those of `TOP_LEVEL`. A `plain`
    server is any other OpenAI-compatible server: it gets no such object and returns no trace.
    Each sample of a question is asked with `seed_of` it. `timeout_s` bounds the silence between two
    reads, and so the whole trajectory, in seconds; it does not affect the answer.
    """

    model: str
    params: Mapping[str, JsonValue] = field(default_factory=dict)
    fields: Mapping[str, JsonValue] = field(default_factory=dict)
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
    plain: bool = False
    timeout_s: float = 3600.0

    def body(self, question: Question, sample: int) -> dict[str, JsonValue]:
        """Return the request for one sample; the server decides whatever was not chosen."""
        seed = None if self.seed is None else seed_of(self.seed, question.id, sample)
        return self.body_with(question, seed)

    def body_with(self, question: Question, seed: int | None) -> dict[str, JsonValue]:
        """Return the request with the seed that is sent."""
        body: dict[str, JsonValue] = {
            "model": self.model,
            "messages": [message.model_dump() for message in question.messages],
            "n": 1,
        }
        if not self.plain:
            body["motab"] = {**self.params, **self._reference(question)}
        chosen: dict[str, int | None] = {"max_tokens": self.max_tokens, "seed": seed}
        given = {name: value for name, value in chosen.items() if value is not None}
        return {**body, **given, **self.sampling(), **self.of_templates()}

    def _reference(self, question: Question) -> dict[str, JsonValue]:
        """Return the reference, if one of several corrections is chosen by it."""
        is_asked = self.params.get("corrections", 1) != 1
        if not is_asked or self.params.get("choose") == "majority" or question.answer is None:
            return {}
        return {"reference": question.answer}

    def sampling(self) -> dict[str, JsonValue]:
        """Return the sampling values that were chosen."""
        chosen = {"temperature": self.temperature, "top_p": self.top_p}
        given = {name: value for name, value in chosen.items() if value is not None}
        return {**given, **{name: self.fields[name] for name in self.fields.keys() - _OF_TEMPLATES}}

    def of_templates(self) -> dict[str, JsonValue]:
        """Return the chosen variables of the chat templates."""
        return {name: self.fields[name] for name in self.fields.keys() & _OF_TEMPLATES}


def seed_of(seed: int, question_id: str, sample: int) -> int:
    """Return the seed of a sample under a run's seed: no two share their random numbers.

    It has 31 bits, because there are servers that accept no more.
    """
    content = orjson.dumps([seed, question_id, sample])
    return int.from_bytes(blake2b(content, digest_size=4).digest()) >> 1


@dataclass(frozen=True, slots=True)
class Unit:
    """One unit of work: one sample of one question.

    `key` is 16 bytes of hash over the request, with the run's seed, and the sample's number. The
    question's id is not part of it, so a row may get another id: nothing is asked twice. Its answer
    is part of it only where the request has it as the reference.
    """

    question: Question
    sample: int
    key: bytes


def units_of(question: Question, synthesis: Synthesis, num_samples: int) -> Iterator[Unit]:
    """Yield the samples of a question, in order."""
    for sample in range(num_samples):
        asked = synthesis.body_with(question, synthesis.seed)
        content = orjson.dumps([asked, sample, synthesis.plain], option=orjson.OPT_SORT_KEYS)
        yield Unit(question, sample, blake2b(content, digest_size=_KEY_BYTES).digest())


def scoring_body(model: str, record: Record) -> dict[str, JsonValue]:
    """Return the request for a record's token log-probabilities."""
    asked: dict[str, JsonValue] = {
        "messages": [message.model_dump() for message in record.messages]
    }
    if record.raw_prompt:
        asked = {"prompt": record.question}
    for name in sorted(_OF_TEMPLATES):
        if (value := getattr(record, name)) is not None:
            asked[name] = value
    return {"model": model, **asked, "text": record.output, "token_logprobs": True}


@dataclass(frozen=True, slots=True)
class ScoringUnit(Unit):
    """A record to be scored; its key covers the model's name, the messages with their templates'
    variables, and the output.
    """

    record: Record


def scoring_unit(record: Record, model: str) -> ScoringUnit:
    """Return the unit that scores a record."""
    content = orjson.dumps(scoring_body(model, record), option=orjson.OPT_SORT_KEYS)
    question = Question(record.id, record.messages, record.answer)
    key = blake2b(content, digest_size=_KEY_BYTES).digest()
    return ScoringUnit(question, record.sample, key, record)
