"""Rounds of MOTAB as a plain loop: one trajectory after the other, each from the text so far.

Shares no code with `proxy.core`. A round is the plain loop of `sequential`, asked about the context
that the rounds before have left.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from tests.property.relayed import Writes, tokens_up_to
from tests.property.sequential import Result, Setting, cut_into_steps, first_end, run


@dataclass(frozen=True)
class Rounds:
    """The results of the rounds, and all requests: author, context and budget."""

    results: list[Result]
    teacher_tokens: int
    """Of the corrections as far as they are kept."""
    end: str
    asked: list[tuple[str, str, int]]

    @property
    def text(self) -> str:
        return "".join(one.text for one in self.results)

    @property
    def spans(self) -> list[tuple[str, int, int]]:
        found: list[tuple[str, int, int]] = []
        at = 0
        for one in self.results:
            found += [(role, at + start, at + end) for role, start, end in one.spans]
            at += len(one.text)
        return found

    @property
    def breaches(self) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        num = 0
        for one in self.results:
            if one.breach is not None and one.bifurcation is not None:
                found.append((num + one.breach, num + one.bifurcation))
            num += len(one.step_texts)
        return found


def in_rounds(
    setting: Setting,
    writes: Writes,
    value_of: Callable[[str, str], float],
    entropy_of: Callable[[str], float],
    num_rounds: int,
    correction_steps: int,
) -> Rounds:
    path, budget = "", setting.max_total_tokens
    results: list[Result] = []
    asked: list[tuple[str, str, int]] = []
    num_teacher = 0
    for number in range(1, num_rounds + 1):
        draft = writes("student", path)
        asked.append(("student", path, budget))

        def one_round(correction: str, end: str) -> Result:
            return run(
                replace(setting, max_total_tokens=budget),  # noqa: B023 - called at once
                draft.tokens,  # noqa: B023
                draft.end,  # noqa: B023
                lambda context, step: value_of(path + context, step),  # noqa: B023
                lambda context: entropy_of(path + context),  # noqa: B023
                correction,
                end,
                before=path,  # noqa: B023
            )

        first = one_round("", "stop")
        if first.correction_context is None or first.correction_budget is None:
            return Rounds([*results, first], num_teacher, first.finish_reason, asked)
        context, left = path + first.correction_context, first.correction_budget
        text = writes("teacher", context)
        asked.append(("teacher", context, left))
        if number == num_rounds:
            last = one_round("".join(text.tokens), text.end)
            num_teacher += len(text.tokens)
            return Rounds([*results, last], num_teacher, text.end, asked)
        steps, _, cut = cut_into_steps(
            text.tokens, setting.delimiter, setting.max_step_tokens, left, context
        )
        written = "".join(steps[:correction_steps])
        before = context + "".join(steps[: correction_steps - 1])
        is_whole = (
            len(steps) >= correction_steps
            and first_end(before, steps[correction_steps - 1], setting.delimiter) is not None
        )
        if not is_whole:
            end = "length" if cut else text.end
            written = "".join(steps)
            num_teacher += tokens_up_to(text.tokens, len(written)) if written else 0
            return Rounds([*results, one_round(written, end)], num_teacher, end, asked)
        used = tokens_up_to(text.tokens, len(written))
        num_teacher += used
        results.append(one_round(written, "stop"))
        path, budget = context + written, left - used
        if budget == 0:
            return Rounds(results, num_teacher, "length", asked)
    raise AssertionError("a round ends the loop")
