"""Makes the table's figures and the page's curves from what was measured at each level."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import median

from benchmarks.figures import Chart, Figure, Findings, Point, quantile
from benchmarks.servers.level import Level, Part
from benchmarks.servers.side_by_side import Counts, SideBySide

_Value = Callable[[Level], float | None]
PLAIN, MOTAB, PUBLISHED = "plain student", "motab", "published loop"


def findings(level: Level) -> Findings:
    """Return the figures of one level."""
    figures = [*_speed(level), *_first_text(level), *_scoring(level), *_waste(level)]
    return Findings(tuple(figures))


def with_simulators(of_level: Findings, compared: SideBySide) -> Findings:
    """Return the findings of a level with the figures of its simulators."""
    own = compared.real, compared.simulated
    straying = compared.real_straying, compared.simulated_straying
    rows = [
        ("tokens a second", own, lambda one: one.num_tokens / one.seconds),
        ("scoring calls per step", own, lambda one: one.num_calls / one.num_steps),
        ("teacher tokens computed / context", own, lambda one: one.computed / one.num_context),
        ("the same, with breaches", straying, lambda one: one.computed / one.num_context),
        ("student tokens wasted / kept", straying, lambda one: one.wasted / one.kept),
    ]
    return replace(of_level, figures=(*of_level.figures, *(_both(compared, *row) for row in rows)))


def _both(
    compared: SideBySide, what: str, sides: tuple[Counts, Counts], value: Callable[[Counts], float]
) -> Figure:
    real, simulated = map(value, sides)
    ratio = f", {simulated / real:.2f} of it" if real else ""
    name = f"{compared.at_once} at once, against simulators: {what}"
    return Figure(name, real, f"simulators {simulated:.3g}{ratio}")


def curves(levels: Sequence[Level]) -> Findings:
    """Return the curves over all levels, without those that were not measured."""
    texts: dict[str, _Value] = {
        PLAIN: lambda level: _rate(level.plain),
        MOTAB: lambda level: _rate(level.motab),
    }
    first: dict[str, _Value] = {
        PLAIN: lambda level: _first(level.plain),
        MOTAB: lambda level: _first(level.motab),
    }
    computed: dict[str, _Value] = {MOTAB: _computed_by_motab, PUBLISHED: _computed_by_loop}
    charts = (
        _chart(levels, "Throughput", "tokens a second", {**texts, PUBLISHED: _loop_rate}),
        _chart(levels, "Time to the first text", "seconds (p50)", first),
        _chart(levels, "Cost of scoring", "teacher tokens computed / length", computed),
    )
    return Findings((), tuple(chart for chart in charts if chart.curves))


def _chart(levels: Sequence[Level], title: str, y: str, values: Mapping[str, _Value]) -> Chart:
    curves: dict[str, tuple[Point, ...]] = {}
    for name, value in values.items():
        found = [(level.at_once, value(level)) for level in levels]
        points = tuple(Point(at_once, known) for at_once, known in found if known is not None)
        if points:
            curves[name] = points
    return Chart(title, "trajectories at once", y, curves, log=True)


def _speed(level: Level) -> list[Figure]:
    plain, motab = _rate(level.plain), _rate(level.motab)
    figures = [
        Figure(_name(level, PLAIN), plain, _amount(level.plain), unit="tok/s"),
        Figure(_name(level, MOTAB), motab, _amount(level.motab), unit="tok/s"),
        Figure(_name(level, "motab / plain student, tokens a second"), motab / plain),
    ]
    if (loop := _loop_rate(level)) is not None:
        name = _name(level, "motab / published loop, tokens a second")
        figures.append(Figure(name, motab / loop, f"published loop: {loop:.3g} tok/s"))
    spent_us = level.motab.proxy_cpu_s / level.motab.num_tokens * 1e6
    figures.append(Figure(_name(level, "proxy's processor for a token"), spent_us, unit="us"))
    return figures


def _first_text(level: Level) -> list[Figure]:
    return [
        Figure(
            _name(level, f"time to the first text, {name}, p50"),
            1000 * _first(part),
            f"p99 {1000 * quantile([one.first_s for one in part.answers], 0.99):.0f} ms",
            unit="ms",
        )
        for name, part in ((PLAIN, level.plain), (MOTAB, level.motab))
    ]


def _scoring(level: Level) -> list[Figure]:
    calls = level.motab.used("score_calls") / max(level.motab.num_steps, 1)
    steps = f"{level.motab.num_steps} steps"
    figures = [Figure(_name(level, "scoring calls per step"), calls, steps)]
    if (computed := _computed_by_motab(level)) is not None:
        loop = _computed_by_loop(level)
        detail = "" if loop is None else f"published loop: {loop:.3g}"
        name = _name(level, "teacher tokens computed / length")
        figures.append(Figure(name, computed, detail))
    return figures


def _waste(level: Level) -> list[Figure]:
    part = level.straying
    breaches = sum(one.trace["breach"] is not None for one in part.answers)
    wasted = part.used("student_tokens_discarded")
    kept = part.used("student_tokens") - wasted
    detail = f"{wasted} / {kept}; {breaches} breaches in {len(part.answers)} texts"
    name = _name(level, "student tokens wasted / kept, with breaches")
    return [Figure(name, wasted / max(kept, 1), detail)]


def _name(level: Level, what: str) -> str:
    return f"{level.at_once} at once: {what}"


def _amount(part: Part) -> str:
    return f"{part.num_tokens} tokens of {len(part.answers)} texts in {part.seconds:.1f} s"


def _rate(part: Part) -> float:
    return part.num_tokens / part.seconds


def _loop_rate(level: Level) -> float | None:
    loop = level.published
    return None if loop is None else loop.num_tokens / loop.report.seconds


def _first(part: Part) -> float:
    return median(one.first_s for one in part.answers)


def _computed_by_motab(level: Level) -> float | None:
    computed = level.motab.teacher_computed
    return None if computed is None else computed / max(level.motab.num_tokens, 1)


def _computed_by_loop(level: Level) -> float | None:
    loop = level.published
    if loop is None or loop.teacher_computed is None:
        return None
    return loop.teacher_computed / max(loop.num_tokens, 1)
