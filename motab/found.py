"""Turns what servers and a probe answered into the sections of a configuration."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from motab.draft import Draft, Section, Setting, pair_name
from proxy.core.params import Params
from proxy.core.types import JUDGES, Author
from proxy.errors import ConfigError
from proxy.probe.identify import Identity
from proxy.probe.report import Report, UpstreamReport
from proxy.variables import VARIABLE

KIND_NAMES: Final = {
    "vllm": "vLLM",
    "sglang": "SGLang",
    "llamacpp": "llama.cpp's own server",
    "openai": "A server with OpenAI's /v1/completions",
    "litellm": "A chat API without /v1/completions",
}
_OWN_KINDS: Final = {"vllm", "sglang", "llamacpp"}
_DEFAULT_CONCURRENT: Final = 64
_STATIC: Final = {
    "boundary": Setting("static", "marks have no entropy"),
    "base_threshold": Setting(0.5, "for marks, where the paper's 0.2 means nothing"),
}


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two servers: its URL as the file shall have it, and what it said it is."""

    role: Author
    url: str
    identity: Identity
    key_variable: str | None = None
    tokenizer: str | None = None


def first_draft(sides: Mapping[Author, Side]) -> Draft:
    """Return the configuration that the servers are probed with. Raises `ConfigError`."""
    models = {role: side.identity.model for role, side in sides.items()}
    draft = Draft(
        {role: _section(side) for role, side in sides.items()},
        pair_name(models["student"], models["teacher"]),
    )
    if sides["teacher"].identity.kind == "litellm":
        draft.params |= _STATIC
    return draft


def _section(side: Side) -> Section:
    identity = side.identity
    is_hosted = identity.kind == "litellm"
    settings = {
        "kind": Setting(identity.kind),
        "base_url": Setting(f"{side.url}/v1" if is_hosted else side.url),
        "model": Setting(_safe(side, f"openai/{identity.model}" if is_hosted else identity.model)),
    }
    if side.key_variable is not None:
        settings["api_key"] = Setting(f"${{{side.key_variable}}}")
    tokenizer = side.tokenizer
    if identity.kind == "openai":
        tokenizer = tokenizer or identity.root or identity.model
    if tokenizer is not None:
        settings["tokenizer"] = Setting(_safe(side, tokenizer))
    if is_hosted:
        note = "a request to continue; docs/servers/hosted.md has better ways"
        settings["continuation"] = Setting("instruct", note)
    slots = identity.settings.slots
    if slots is not None and slots < _DEFAULT_CONCURRENT:
        settings["max_concurrent"] = Setting(slots, "the requests that it runs at once")
    about = [f"{KIND_NAMES[identity.kind]}.", *identity.settings.advice]
    if identity.signed_by in _OWN_KINDS and identity.signed_by != identity.kind:
        about.append(
            f"It says that it is {KIND_NAMES[identity.signed_by]}, but its own routes do not"
            f" answer: where they do, kind {identity.signed_by} is the better way."
        )
    return Section(about, settings)


def _safe(side: Side, text: str) -> str:
    """Return a server's word, unless the file's reader would fill it with a secret of ours."""
    if VARIABLE.search(text):
        raise ConfigError(f"the {side.role}'s server calls its model '{text}', which is refused")
    return text


@dataclass(slots=True)
class _Amending:
    """Adds to a draft what a probe of it found."""

    draft: Draft
    report: Report
    windows: list[int] = field(default_factory=list)

    def amend(self) -> None:
        for role, section in self.draft.upstreams.items():
            self._amend_section(section, self.report.upstreams[role])
        self._about_scoring(self.draft.upstreams["teacher"])
        default = Params().max_total_tokens
        if self.windows and min(self.windows) < default:
            note = f"the smaller window; the default is {default}"
            self.draft.params["max_total_tokens"] = Setting(min(self.windows), note)
        if not self.draft.params:
            self.draft.params["base_threshold"] = Setting(
                Params().base_threshold, "see docs/choosing-thresholds.md", is_open=True
            )

    def _amend_section(self, section: Section, found: UpstreamReport) -> None:
        settings, limits = section.settings, found.limits
        thoughts = found.checks.reasoning
        if found.kind != "litellm" and thoughts.result in {"ok", "no"}:
            is_shown = thoughts.result == "ok"
            value = "auto" if is_shown else thoughts.values["kind"]
            note = f"its chat template shows: {thoughts.detail}" if is_shown else thoughts.detail
            settings["reasoning"] = Setting(value, note)
        if limits.context_tokens is None:
            note = "its window, which the server does not say: set yours"
            settings["context_tokens"] = Setting(32768, note, is_open=True)
        else:
            self.windows.append(limits.context_tokens)
            if found.kind in _OWN_KINDS:
                section.about.append(f"Its window is {limits.context_tokens} tokens.")
            else:
                settings["context_tokens"] = Setting(limits.context_tokens, "its window")
        if limits.output_tokens is not None and found.kind not in _OWN_KINDS:
            note = "the longest answer"
            settings["max_output_tokens"] = Setting(limits.output_tokens, note)
        note = "GPUs of the server, or what they cost: its price as against the other's"
        settings["gpus"] = Setting(1, note, is_open=True)

    def _about_scoring(self, section: Section) -> None:
        (pair,) = self.report.models.values()
        ways = self.report.upstreams["teacher"].checks.scoring
        if pair.scoring is None:
            return
        section.about.append(f"It scores by {pair.scoring}.")
        section.about += better_ways(self.report.upstreams["teacher"], pair.scoring)
        if pair.scoring in JUDGES:
            self.draft.params |= _STATIC
            return
        top_k = ways[pair.scoring].top_k
        if top_k.result == "no":
            most = int(top_k.values["most"])
            note = f"it gives {most} candidates, and the default is {Params().entropy_top_k}"
            self.draft.params |= (
                {"entropy_top_k": Setting(most, note)}
                if most > 1
                else {"boundary": Setting("static", "it gives no candidates for the entropy")}
            )


def amend(draft: Draft, report: Report) -> None:
    """Add what a probe of the draft found."""
    _Amending(draft, report).amend()


def better_ways(teacher: UpstreamReport, scoring: str) -> list[str]:
    """Return what would open a better way of scoring, or make this one better."""
    ways = teacher.checks.scoring
    found = []
    if teacher.kind == "vllm" and scoring == "prompt_logprobs":
        why = ways["cached_logprobs"].available.detail.partition(";")[0]
        found.append(f"Every call computes the whole context again, because {why}.")
    if teacher.kind == "llamacpp":
        found.append(
            "One request a token, so a vLLM or an SGLang scores faster; give the teacher 16-bit"
            " weights, because quantised ones move the scores."
        )
    if teacher.kind == "openai" and scoring in JUDGES:
        found.append(f"These are marks, and not the paper's V. No echo: {_why_no_echo(teacher)}")
    if teacher.kind == "litellm":
        found.append("These are marks, and not the paper's V: no hosted chat API gives that.")
    return found


def _why_no_echo(teacher: UpstreamReport) -> str:
    return teacher.checks.scoring["echo"].available.detail
