"""What the probe found, and its JSON (docs/probe.md describes it)."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from proxy import __version__
from proxy.core.types import Scoring

SCHEMA = 1
"""Raised when a key of the JSON changes its name or meaning; new keys leave it as it is."""
Result = Literal["ok", "no", "failed", "not_applicable"]


@dataclass(frozen=True, slots=True)
class Check:
    """The answer to one question about an upstream.

    `no` is the server's clear answer, `failed` means that none could be had. `values` are the
    numbers behind `detail`.
    """

    result: Result
    detail: str
    values: Mapping[str, Any] = field(default_factory=dict)


def ok(detail: str, **values: object) -> Check:
    """It can."""
    return Check("ok", detail, values)


def no(detail: str, **values: object) -> Check:
    """It cannot."""
    return Check("no", detail, values)


def failed(detail: str) -> Check:
    """Nobody knows, and this is why."""
    return Check("failed", detail)


def not_applicable(detail: str) -> Check:
    """There is nothing to ask, and this is why."""
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
    """Everything about one upstream, in the order in which it was asked."""

    reachable: Check
    model: Check
    chat_template: Check
    tokenizer: Check
    writes: Check
    streams: Check
    stop_strings: Check
    decode_logprobs: Check
    scoring: Mapping[Scoring, WayChecks]
    """Every rung of the ladder, best first."""


@dataclass(frozen=True, slots=True)
class UpstreamReport:
    """An upstream as it is configured, and what came out. `base_url` is None for embedded ones."""

    kind: str
    base_url: str | None
    model: str
    checks: UpstreamChecks


@dataclass(frozen=True, slots=True)
class PairReport:
    """Whether a configured model can do its work.

    `reasons` say why it cannot; `notes` what its users should know anyway. `scoring` is the rung
    that its teacher would score by, None where it does not score or cannot.
    """

    student: str
    teacher: str
    method: str
    scoring: Scoring | None
    reasons: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def can(self) -> bool:
        """Whether nothing stands against it."""
        return not self.reasons


@dataclass(frozen=True, slots=True)
class Report:
    """A whole probe."""

    upstreams: Mapping[str, UpstreamReport]
    models: Mapping[str, PairReport]

    @property
    def can(self) -> bool:
        """Whether every configured model can do its work."""
        return all(model.can for model in self.models.values())

    def to_json(self) -> dict[str, Any]:
        """One object for scripts."""
        return {
            "schema": SCHEMA,
            "motab_version": __version__,
            "ok": self.can,
            "upstreams": {name: asdict(upstream) for name, upstream in self.upstreams.items()},
            "models": {
                name: {"ok": model.can, **asdict(model)} for name, model in self.models.items()
            },
        }
