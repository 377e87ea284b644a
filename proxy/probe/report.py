"""Defines the probe's report and its JSON, which docs/probe.md describes."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from proxy import __version__
from proxy.backends.limits import NO_LIMITS, ModelLimits
from proxy.core.types import Scoring

SCHEMA = 1
"""Increased when a key of the JSON changes its name or meaning, but not for new keys."""
Result = Literal["ok", "no", "failed", "not_applicable"]


@dataclass(frozen=True, slots=True)
class Check:
    """The answer to one question about an upstream.

    `no` is the server's clear answer, `failed` means that there was no answer. `values` are the
    numbers behind `detail`.
    """

    result: Result
    detail: str
    values: Mapping[str, Any] = field(default_factory=dict)


def ok(detail: str, **values: object) -> Check:
    """The upstream can do it."""
    return Check("ok", detail, values)


def no(detail: str, **values: object) -> Check:
    """The upstream cannot do it."""
    return Check("no", detail, values)


def failed(detail: str) -> Check:
    """The check gave no answer, for the reason in `detail`."""
    return Check("failed", detail)


def not_applicable(detail: str) -> Check:
    """There is nothing to check, for the reason in `detail`."""
    return Check("not_applicable", detail)


@dataclass(frozen=True, slots=True)
class WayChecks:
    """One rung of the fallback ladder at one upstream."""

    available: Check
    self_test: Check
    top_k: Check
    speed: Check
    prefix_cache: Check


@dataclass(frozen=True, slots=True)
class UpstreamChecks:
    """All checks of one upstream, in the order in which they ran."""

    reachable: Check
    model: Check
    chat_template: Check
    tokenizer: Check
    writes: Check
    streams: Check
    stop_strings: Check
    decode_logprobs: Check
    scoring: Mapping[Scoring, WayChecks]
    """Every rung of the ladder, best first; `http` alone for a scorer."""
    reasoning: Check = Check("not_applicable", "it was not asked")


@dataclass(frozen=True, slots=True)
class UpstreamReport:
    """An upstream's configuration, its checks and its model's limits, as far as they are known.

    `base_url` is None for an embedded upstream, `model` for a scorer.
    """

    kind: str
    base_url: str | None
    model: str | None
    checks: UpstreamChecks
    limits: ModelLimits = NO_LIMITS


@dataclass(frozen=True, slots=True)
class PairReport:
    """The verdict on a configured model.

    `reasons` say why it cannot do its work; `notes` say what its users should know anyway.
    `scoring` is the rung by which its teacher would score, None if it does not or cannot score.
    """

    student: str
    teacher: str
    method: str
    scoring: Scoring | None
    reasons: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def can(self) -> bool:
        """Return whether the model can do its work."""
        return not self.reasons


@dataclass(frozen=True, slots=True)
class Report:
    """A whole probe."""

    upstreams: Mapping[str, UpstreamReport]
    models: Mapping[str, PairReport]

    @property
    def can(self) -> bool:
        """Return whether every configured model can do its work."""
        return all(model.can for model in self.models.values())

    def to_json(self) -> dict[str, Any]:
        """Return the report as one JSON object, for scripts."""
        return {
            "schema": SCHEMA,
            "motab_version": __version__,
            "ok": self.can,
            "upstreams": {name: asdict(upstream) for name, upstream in self.upstreams.items()},
            "models": {
                name: {"ok": model.can, **asdict(model)} for name, model in self.models.items()
            },
        }
