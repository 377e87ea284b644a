"""Says in plain words what a probe and a trial show about a pair, and what to set."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from motab.found import better_ways
from motab.trial import Trial
from proxy.config import Config
from proxy.core.types import NO_PROBABILITIES
from proxy.options import parse_options
from proxy.probe.identify import ServerSettings
from proxy.probe.report import Report
from synth_client.prices import costs_of, priced_tokens
from synth_client.report.rescore import (
    METHOD,
    Calibrator,
    RescoreError,
    own_thresholds,
    scored_steps,
)
from synth_client.report.step_boundary import is_by_step
from trajectory_records.record import Record, Usage

Level = Literal["fault", "advice", "ok"]
WANTED_RATE: Final = 0.4
"""The share of a trial's trajectories that a suggested threshold would let stray."""
_FLAGS: Final = {
    "empty_correction": "the teacher had nothing to write after the breach",
    "repeated_step": "the correction repeats the flawed step",
    "thought_opened_twice": "the text opens a thought twice: check upstreams.*.reasoning",
    "thought_closed_twice": "the text closes a thought twice: check upstreams.*.reasoning",
    "thought_left_open": (
        "the text ends inside a thought: raise max_total_tokens, or check upstreams.*.reasoning"
    ),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence; a `fault` keeps the pair from doing its work, `advice` makes it better."""

    level: Level
    text: str


def of_probe(name: str, config: Config, report: Report) -> Iterator[Finding]:
    """Say whether the pair can work, how it scores, and what does not fit its servers."""
    pair, model = report.models[name], config.models[name]
    for reason in pair.reasons:
        yield Finding("fault", f"it cannot work: {reason}")
    for note in pair.notes:
        yield Finding("advice", note)
    if pair.scoring is not None:
        yield Finding("ok", f"steps are scored by {pair.scoring}")
        if pair.scoring != "http":  # whatever the teacher could do is not asked for
            for text in better_ways(report.upstreams[model.teacher], pair.scoring):
                yield Finding("advice", text)
    names = dict.fromkeys((model.student, model.teacher))
    for upstream in names:
        thoughts = report.upstreams[upstream].checks.reasoning
        if thoughts.result == "no":
            yield Finding("advice", f"upstreams.{upstream}: {thoughts.detail}")
    most = parse_options(model.options).max_total_tokens
    windows = {one: report.upstreams[one].limits.context_tokens for one in names}
    known = {one: window for one, window in windows.items() if window is not None}
    narrow = min(known, key=known.__getitem__, default=None)
    if narrow is not None and known[narrow] < most:
        yield Finding(
            "advice",
            f"max_total_tokens is {most} and the window of '{narrow}' {known[narrow]}: texts end"
            f" there with finish_reason length. Set max_total_tokens: {known[narrow]} in params, or"
            " serve the model with a larger window",
        )


def of_settings(
    config: Config, settings: Mapping[str, Sequence[ServerSettings]]
) -> Iterator[Finding]:
    """Say what the servers of each upstream should be started with, and compare how many requests
    they run at once with how many they are sent.
    """
    for upstream, servers in settings.items():
        for advice in dict.fromkeys(text for server in servers for text in server.advice):
            yield Finding("advice", f"upstreams.{upstream}: {advice}")
        slots = [server.slots for server in servers if server.slots is not None]
        wanted = config.upstreams[upstream].max_concurrent
        # A server that does not say how many it runs may run all the others.
        if len(slots) == len(servers) and wanted > sum(slots):
            yield Finding(
                "advice",
                f"upstreams.{upstream}.max_concurrent is {wanted}, and its servers run"
                f" {sum(slots)} requests at once: set max_concurrent: {sum(slots)}, or start them"
                " with more",
            )


def of_trial(trial: Trial, prices: Mapping[str, float]) -> Iterator[Finding]:
    """Say how the trial went: failures, ends, thoughts, answers, tokens, time and cost."""
    records = trial.records
    for error, num in Counter(trial.errors).items():
        yield Finding(
            "fault", f"a question failed: {error}" + (f" ({num} times)" if num > 1 else "")
        )
    if not records:
        return
    yield from _ends(records)
    flags = Counter(flag for record in records for flag in record.flags())
    for flag, num in flags.items():
        yield Finding("advice", f"{num} of {len(records)}: {_FLAGS[flag]}")
    judged = [record.correct for record in records if record.correct is not None]
    if judged:
        yield Finding("ok", f"{sum(judged)} of {len(judged)} answers are right")
    yield Finding("ok", _cost(trial, prices))


def _ends(records: Sequence[Record]) -> Iterator[Finding]:
    cut = [record for record in records if record.finish_reason == "length"]
    if not cut:
        return
    limits = {record.limited_by for record in cut if record.limited_by is not None}
    by = ", ".join(
        sorted(f"the {one.model}'s {one.limit} ({one.tokens})" for one in limits)
        or ["max_total_tokens or max_step_tokens"]
    )
    level: Level = "fault" if len(cut) == len(records) else "advice"
    yield Finding(
        level,
        f"{len(cut)} of {len(records)} answers were cut by {by}: raise it, or shorten the thoughts"
        " (reasoning_effort, chat_template_kwargs)",
    )


def _cost(trial: Trial, prices: Mapping[str, float]) -> str:
    records = trial.records
    usages: list[Usage] = [record.usage for record in records]
    tokens: Counter[str] = Counter()
    for usage in usages:
        tokens.update(priced_tokens(usage))
    costs = costs_of(tokens, prices)
    each = ", ".join(f"{one.num_tokens / len(records):,.0f} {one.label}" for one in costs)
    seconds = sum(record.seconds for record in records) / len(records)
    text = f"a question took {seconds:.1f} s and these tokens: {each}"
    known = [one.cost for one in costs if one.cost is not None]
    if not known:
        return text + "; no cost without --price"
    return text + f"; it cost {sum(known) / len(records):.6g} at the given prices"


def breach_rate(records: Sequence[Record]) -> float | None:
    """Return the share of trajectories that strayed; None without trajectories of MOTAB."""
    of_motab = [record for record in records if record.method == METHOD]
    if not of_motab:
        return None
    return sum(record.breach is not None for record in of_motab) / len(of_motab)


def wants_pilot(records: Sequence[Record]) -> bool:
    """Return whether the same questions without a threshold would show which one to try: all
    trajectories strayed, at a threshold for probabilities.
    """
    if breach_rate(records) != 1:
        return False
    return records[0].scoring not in NO_PROBABILITIES and not is_by_step(records[0])


def of_rate(records: Sequence[Record], pilot: Sequence[Record]) -> Iterator[Finding]:
    """Say how many trajectories strayed and, if that were all or none, which threshold to try.

    `pilot` are trajectories whose values go to their ends; `records`, if these are enough.
    """
    rate = breach_rate(records)
    if rate is None:
        return
    num = round(rate * len(records))
    strayed = f"{num} of {len(records)} trajectories strayed"
    if 0 < rate < 1:
        yield Finding("ok", strayed)
        return
    if is_by_step(records[0]):
        advice = "learn its boundary again: motab rescore --calibrate quantile"
        text = f"{strayed}, each step at a boundary of its own: {advice}"
        yield Finding("advice", f"{text} (docs/choosing-thresholds.md)")
        return
    base, _ = own_thresholds(records[0])
    yield Finding("advice", f"{strayed}, at base_threshold {base:g}: {_threshold(pilot)}")


def _threshold(pilot: Sequence[Record]) -> str:
    values = [step.value for record in pilot for step in record.steps if step.value is not None]
    if not values:
        return "no step has a value, because no answer has a whole step"
    if pilot[0].scoring in NO_PROBABILITIES:
        whose, page = "judge's marks", "hosted"
        if pilot[0].scoring == "http":
            whose, page = "scorer's values", "scorer"
        what = whose.rpartition(" ")[2]
        return (
            f"the {whose} lie between {min(values):.2g} and {max(values):.2g}; choose a"
            f" threshold between {what} of good and of bad steps (docs/servers/{page}.md)"
        )
    scale = own_thresholds(pilot[0])[1]
    calibrator = Calibrator(scale)
    try:
        for scored in scored_steps(pilot, with_entropy=scale != 0):
            calibrator.add(scored)
        found = calibrator.threshold(WANTED_RATE)
    except RescoreError as error:
        return f"no threshold can be suggested, because {error}"
    share = f"{round(WANTED_RATE * len(pilot))} of {len(pilot)}"
    return (
        f"with base_threshold {found.base_threshold:g} about {share} would. Choose it on more"
        " questions: motab synth --param base_threshold=0, then motab rescore --calibrate"
        " (docs/choosing-thresholds.md)"
    )
