"""Builds answers in OpenAI's shapes, with motab's additions each in one object."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from proxy.api.choices import Choices, failures_of
from proxy.api.lengths import LoweredTokens
from proxy.core.params import TeacherSampling
from proxy.core.types import Author, Chosen, StepTrace
from proxy.engine.given_text import ScoredText, TextLogprobs
from proxy.engine.usage import Outcome, Usage
from proxy.options import Options

Kind = Literal["chat", "text"]


@dataclass(frozen=True, slots=True)
class Head:
    """The fields that all answers and chunks of a request repeat; `created`: seconds since 1970."""

    kind: Kind
    id: str
    created: int
    model: str


def completion(
    head: Head,
    made: Choices,
    n: int,
    options: Options,
    models: dict[str, str | None],
    lowered: LoweredTokens | None,
) -> dict[str, Any]:
    """A whole answer: one choice per trajectory that finished, and the errors of the others.

    Each prompt has `n` choices.
    """
    choices: list[dict[str, Any]] = []
    for index, outcome in made.done.items():
        text = outcome.trajectory.text
        choice: dict[str, Any] = {"index": index, "logprobs": None}
        if head.kind == "chat":
            choice["message"] = {"role": "assistant", "content": text, "refusal": None}
        else:
            choice["text"] = text
        choice["finish_reason"] = outcome.trajectory.finish_reason
        if options.trace != "none":
            choice["motab"] = trace(outcome, options, models, lowered)
        choices.append(choice)
    return {
        "id": head.id,
        "object": "chat.completion" if head.kind == "chat" else "text_completion",
        "created": head.created,
        "model": head.model,
        "choices": choices,
        "usage": usage(made, n, options),
        **({"motab": failures_of(made.failed)} if made.failed else {}),
    }


def trace(
    outcome: Outcome,
    options: Options,
    models: dict[str, str | None],
    lowered: LoweredTokens | None = None,
) -> dict[str, Any]:
    """The `motab` object of a choice."""
    trajectory = outcome.trajectory
    found: dict[str, Any] = {
        "method": options.method,
        "quality": outcome.quality,
        "breach": trajectory.breach,
        "bifurcation": trajectory.bifurcation,
        "scoring": outcome.scoring,
        "spans": [
            {"role": span.role, "start": span.start, "end": span.end} for span in trajectory.spans
        ],
    }
    if trajectory.breaches:
        found["breaches"] = [asdict(breached) for breached in trajectory.breaches]
    if trajectory.chosen is not None:
        found["chosen"] = chosen(trajectory.chosen)
    if outcome.limited_by is not None:
        found["limited_by"] = asdict(outcome.limited_by)
    if lowered is not None:
        found["max_tokens"] = asdict(lowered)
    if outcome.fallbacks:
        found["scoring_fallbacks"] = {way: list(at) for way, at in outcome.fallbacks.items()}
    if options.trace == "full":
        found["steps"] = [step_trace(step) for step in trajectory.steps]
        found["params"] = params(options)
        found["models"] = models
    return found


def chosen(chosen: Chosen) -> dict[str, Any]:
    """The choice among several corrections; `lost` only if some were."""
    found = asdict(chosen)
    if not chosen.lost:
        del found["lost"]
    return found


def params(options: Options) -> dict[str, Any]:
    """The options; `teacher`, `boundary_values` and those of rounds and corrections only if they
    change something.
    """
    found = asdict(options, dict_factory=_as_json)
    del found["reference"]  # it belongs to the question
    if options.corrections == 1:
        del found["corrections"], found["choose"]
    if options.teacher == TeacherSampling():
        del found["teacher"]
    if not options.boundary_values:
        del found["boundary_values"]
    if options.rounds == 1:
        del found["rounds"], found["correction_steps"]
    return found


def _as_json(items: list[tuple[str, Any]]) -> dict[str, Any]:
    # Records take JSON's values only, which tuples are not.
    return {name: list(value) if isinstance(value, tuple) else value for name, value in items}


def step_trace(step: StepTrace) -> dict[str, Any]:
    """One step, with its text only if it is not part of the output."""
    # Not `asdict`, which looks inside each number for something to copy: 9 us a step, against 0.6.
    fields = {name: getattr(step, name) for name in _STEP_FIELDS}
    return fields if step.start is not None else {**fields, "text": step.text}


_STEP_FIELDS = tuple(name for name in StepTrace.__dataclass_fields__ if name != "text")


def usage(made: Choices, n: int, options: Options) -> dict[str, Any]:
    """OpenAI's counts of the text that the client sees, and the real cost under `motab`."""
    usages, prompt = made.usages(), made.prompt_tokens(n)
    completion_tokens = sum(one.completion_tokens for one in usages)
    found: dict[str, Any] = dict(token_counts(prompt, completion_tokens))
    if options.trace != "none":
        found["motab"] = {name: _sum([getattr(one, name) for one in usages]) for name in _COSTS}
    return found


def token_counts(prompt: int, completion: int) -> dict[str, int]:
    """OpenAI's own fields of a usage."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def _sum(counts: list[int | None]) -> int | None:
    """The sum, or None if one of the counts is not known."""
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


_COSTS = tuple(
    name
    for name in Usage.__dataclass_fields__
    if name not in {"prompt_tokens", "completion_tokens"}
)


def text_logprobs(
    head: Head, found: Mapping[Author, TextLogprobs], scoring: Mapping[Author, str]
) -> dict[str, Any]:
    """The answer of `/v1/motab/score` with `token_logprobs`."""
    prompt_tokens = found["student"].prompt_tokens
    scored = {f"{author}_scored_tokens": len(logprobs.ends) for author, logprobs in found.items()}
    return {
        "object": "motab.token_logprobs",
        "model": head.model,
        "created": head.created,
        "scoring": dict(scoring),
        "token_logprobs": {
            author: {"ends": logprobs.ends, "logprobs": logprobs.logprobs}
            for author, logprobs in found.items()
        },
        "usage": {
            **token_counts(prompt_tokens, 0),
            "motab": {**scored, "score_calls": len(found)},
        },
    }


def scored_text(head: Head, scored: ScoredText, options: Options, scoring: str) -> dict[str, Any]:
    """The answer of `/v1/motab/score`."""
    return {
        "object": "motab.score",
        "model": head.model,
        "created": head.created,
        "scoring": scoring,
        "breach": scored.breach,
        "bifurcation": scored.bifurcation,
        "steps": [step_trace(step) for step in scored.steps],
        "params": params(options),
        "usage": {
            **token_counts(scored.prompt_tokens, 0),
            "motab": {
                "teacher_scored_tokens": scored.scored_tokens,
                "teacher_cached_tokens": scored.cached_tokens,
                "score_calls": 1,
            },
        },
    }
