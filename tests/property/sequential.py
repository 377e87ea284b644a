"""The algorithm as a plain loop: one step, one score, one decision at a time.

Written from `algorithm.md` alone and shares no code with `proxy.core`, so that the two can be held
against each other. It re-scans everything at every step; nothing in it is fast or incremental.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Ends:
    """The texts that end a step, and whether one in fenced code does."""

    texts: tuple[str, ...]
    keep_code: bool = False


@dataclass(frozen=True)
class Setting:
    delimiter: Ends
    max_step_tokens: int
    max_total_tokens: int
    base_threshold: float
    entropy_scale: float
    adaptive: bool
    backtrack: bool
    flawed: bool
    revise: str = "However,"
    by_step: tuple[float, ...] = ()
    """The boundary of each step, if it does not come from `base_threshold`."""


@dataclass(frozen=True)
class Result:
    text: str
    spans: list[tuple[str, int, int]]
    step_texts: list[str]
    step_tokens: list[int]
    values: list[float]
    boundaries: list[float]
    breach: int | None
    bifurcation: int | None
    finish_reason: str
    correction_context: str | None
    correction_budget: int | None


def is_in_code(text: str) -> bool:
    """Return whether fenced code is open at the end of the text (CommonMark 4.5)."""
    fence = ""
    lines = text.split("\n")
    for number, line in enumerate(lines, start=1):
        mark = re.match(" {0,3}(`{3,}|~{3,})", line)
        if mark is None:
            continue
        rest = line[mark.end() :]
        if fence:
            is_end = mark[1].startswith(fence) and not rest.strip() and number < len(lines)
            fence = "" if is_end else fence
        elif mark[1][0] == "~" or "`" not in rest:
            fence = mark[1]
    return bool(fence)


def first_end(before: str, text: str, ends: Ends) -> int | None:
    """Return where the first step of `text`, which continues `before`, ends with a delimiter."""
    for end in range(1, len(text) + 1):
        if not any(text[:end].endswith(delimiter) for delimiter in ends.texts):
            continue
        if not (ends.keep_code and is_in_code(before + text[:end])):
            return end
    return None


def cut_into_steps(
    tokens: list[str], ends: Ends, max_step_tokens: int, max_total_tokens: int, before: str = ""
) -> tuple[list[str], list[int], bool]:
    """Steps, their token counts, and whether a cap cut the text, which continues `before`."""
    steps: list[str] = []
    counts: list[int] = []
    text, used = "", 0  # of the open step
    for position, token in enumerate(tokens, start=1):
        text += token
        used += 1
        while (end := first_end(before, text, ends)) is not None:
            steps.append(text[:end])
            before, text = before + text[:end], text[end:]
            # The token counts for the step in which it ends.
            counts.append(used if text == "" else used - 1)
            used = 0 if text == "" else 1
            if text == "":
                break
        if used >= max_step_tokens or position >= max_total_tokens:
            if text:
                steps.append(text)
                counts.append(used)
            return steps, counts, True
    if text:
        steps.append(text)
        counts.append(used)
    return steps, counts, False


def run(
    setting: Setting,
    student_tokens: list[str],
    student_end: str,
    value_of: Callable[[str, str], float],
    entropy_of: Callable[[str], float],
    correction: str,
    correction_end: str,
    before: str = "",
) -> Result:
    """`value_of(context, step)` and `entropy_of(context)` are the fixed teacher, and `before` is
    the text that the student continues.
    """
    most = setting.max_step_tokens, setting.max_total_tokens
    steps, counts, cut = cut_into_steps(student_tokens, setting.delimiter, *most, before)
    values: list[float] = []
    bounds: list[float] = []
    breach: int | None = None
    for t, step in enumerate(steps):
        context = "".join(steps[:t])
        values.append(value_of(context, step))
        scale = math.exp(-setting.entropy_scale * entropy_of(context)) if setting.adaptive else 1.0
        if setting.by_step:
            bounds.append([*setting.by_step, *[setting.by_step[-1]] * t][t])
        else:
            bounds.append(setting.base_threshold * scale)
        if values[t] < bounds[t]:
            breach = t
            break
    if breach is None:
        text = "".join(steps)
        spans = [("student", 0, len(text))] if text else []
        end = "length" if cut else student_end
        return Result(text, spans, steps, counts, values, bounds, None, None, end, None, None)

    bifurcation = breach
    if setting.backtrack and breach > 0:
        steepest = math.inf
        for k in range(1, breach + 1):
            if values[k - 1] >= bounds[k - 1] and values[k] - values[k - 1] < steepest:
                steepest = values[k] - values[k - 1]
                bifurcation = k
    safe = "".join(steps[:bifurcation])
    flawed = "".join(steps[bifurcation : breach + 1])
    parts = [("student", safe)]
    if setting.flawed:
        before, after = "\n\n", "\n\n"
        if (safe + flawed).endswith("\n"):
            before = "\n"
        if (safe + flawed).endswith("\n\n"):
            before = ""
        if correction.startswith("\n"):
            after = "\n"
        if correction.startswith("\n\n"):
            after = ""
        parts += [("flawed", flawed), ("revise", before + setting.revise + after)]
    parts.append(("teacher", correction))
    spans, at = [], 0
    for role, part in parts:
        if part:
            spans.append((role, at, at + len(part)))
            at += len(part)
    return Result(
        text="".join(part for _, part in parts),
        spans=spans,
        step_texts=steps[: breach + 1],
        step_tokens=counts[: breach + 1],
        values=values,
        boundaries=bounds,
        breach=breach,
        bifurcation=bifurcation,
        finish_reason=correction_end,
        correction_context=safe,
        correction_budget=setting.max_total_tokens - sum(counts[:bifurcation]),
    )
