"""The methods that share the pen as plain loops: one step, one decision at a time.

Written from `algorithm.md` and docs/how-it-works.md alone and shares no code with `proxy.core`.
What a model writes after a context is a function of the context; a loop asks for all of it and
takes what it needs.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

from tests.property import sequential
from tests.property.sequential import Ends, Setting, cut_into_steps, first_end


@dataclass(frozen=True)
class Text:
    """A model's text: its tokens, the probability it gave each, and how it ended."""

    tokens: list[str]
    logprobs: list[float]
    end: str


@dataclass(frozen=True)
class Caps:
    delimiter: Ends
    max_step_tokens: int
    max_total_tokens: int


@dataclass(frozen=True)
class Row:
    """A step, whether it is in the text, and what decided."""

    author: str
    text: str
    num_tokens: int
    kept: bool = True
    value: float | None = None
    boundary: float | None = None


@dataclass(frozen=True)
class Result:
    rows: list[Row]
    end: str
    writes: list[tuple[str, str, int]]
    """Author, context and budget of every request."""

    @property
    def text(self) -> str:
        return "".join(row.text for row in self.rows if row.kept)

    @property
    def spans(self) -> list[tuple[str, int, int]]:
        found: list[tuple[str, int, int]] = []
        at = 0
        for row in self.rows:
            if not row.kept:
                continue
            if found and found[-1][0] == row.author:
                found[-1] = (row.author, found[-1][1], at + len(row.text))
            else:
                found.append((row.author, at, at + len(row.text)))
            at += len(row.text)
        return found


Writes = Callable[[str, str], Text]
"""`writes(author, context)`."""


def tokens_up_to(tokens: list[str], length: int) -> int:
    """The number of tokens that it takes to write that many characters."""
    written = ""
    for count, token in enumerate(tokens, start=1):
        written += token
        if len(written) >= length:
            return count
    raise AssertionError("the text is not that long")


def imitkd(writes: Writes, caps: Caps, beta: float, seed: int) -> Result:
    coin = Random(seed)
    authors = ["teacher" if coin.random() < beta else "student" for _ in range(500)]
    rows: list[Row] = []
    asked: list[tuple[str, str, int]] = []
    budget = caps.max_total_tokens
    while True:
        author = authors[len(rows)]
        run = 1
        while len(rows) + run < len(authors) and authors[len(rows) + run] == author:
            run += 1
        context = "".join(row.text for row in rows)
        asked.append((author, context, budget))
        text = writes(author, context)
        steps, counts, cut = cut_into_steps(
            text.tokens, caps.delimiter, caps.max_step_tokens, budget, context
        )
        before = context + "".join(steps[: run - 1])
        if len(steps) < run or first_end(before, steps[run - 1], caps.delimiter) is None:
            rows += [Row(author, s, c) for s, c in zip(steps, counts, strict=True)]
            return Result(rows, "length" if cut else text.end, asked)
        rows += [
            Row(author, s, c) for s, c in zip(steps[: run - 1], counts[: run - 1], strict=True)
        ]
        used = tokens_up_to(text.tokens, len("".join(steps[:run])))
        rows.append(Row(author, steps[run - 1], used - sum(counts[: run - 1])))
        budget -= used
        if budget == 0:
            return Result(rows, "length", asked)


def prefix(writes: Writes, caps: Caps, seed: int) -> Result:
    total = caps.max_total_tokens
    draft = writes("student", "")
    steps, counts, _ = cut_into_steps(draft.tokens, caps.delimiter, total + 1, total)
    cut_at = math.floor(len(steps) * Random(seed).random())
    rows = [Row("student", s, c) for s, c in zip(steps[:cut_at], counts[:cut_at], strict=True)]
    context, budget = "".join(steps[:cut_at]), total - sum(counts[:cut_at])
    text = writes("teacher", context)
    steps, counts, cut = cut_into_steps(text.tokens, caps.delimiter, total + 1, budget, context)
    rows += [Row("teacher", s, c) for s, c in zip(steps, counts, strict=True)]
    asked = [("student", "", total), ("teacher", context, budget)]
    return Result(rows, "length" if cut else text.end, asked)


def own_value(draft: Text, steps: list[str], counts: list[int], index: int) -> float:
    """The geometric mean over the tokens that end in the step; where none does, the one around."""
    first = sum(counts[:index])
    logprobs = draft.logprobs[first : first + max(1, counts[index])]
    return math.exp(math.fsum(logprobs) / len(logprobs))


def skd(writes: Writes, caps: Caps, gamma: float, value_of: Callable[[str, str], float]) -> Result:
    rows: list[Row] = []
    asked: list[tuple[str, str, int]] = []
    budget = caps.max_total_tokens
    while True:
        context = "".join(row.text for row in rows if row.kept)
        asked.append(("student", context, budget))
        draft = writes("student", context)
        steps, counts, cut = cut_into_steps(
            draft.tokens, caps.delimiter, caps.max_step_tokens, budget, context
        )
        for index, step in enumerate(steps):
            limit = gamma * own_value(draft, steps, counts, index)
            value = value_of(context, step)
            kept = value > limit
            rows.append(Row("student", step, counts[index], kept, value, limit))
            if not kept:
                break
            context += step
            budget -= counts[index]
        else:
            return Result(rows, "length" if cut else draft.end, asked)
        asked.append(("teacher", context, budget))
        text = writes("teacher", context)
        steps, counts, cut = cut_into_steps(
            text.tokens, caps.delimiter, caps.max_step_tokens, budget, context
        )
        if not steps or first_end(context, steps[0], caps.delimiter) is None:
            rows += [Row("teacher", s, c) for s, c in zip(steps, counts, strict=True)]
            return Result(rows, "length" if cut else text.end, asked)
        used = tokens_up_to(text.tokens, len(steps[0]))
        rows.append(Row("teacher", steps[0], used))
        budget -= used
        if budget == 0:
            return Result(rows, "length", asked)


@dataclass(frozen=True)
class Rounds:
    """The results of the rounds of MOTAB, and all requests: author, context and budget."""

    results: list[sequential.Result]
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
    """Each round is the plain loop of `sequential`, from the text that the rounds before left."""
    path, budget = "", setting.max_total_tokens
    results: list[sequential.Result] = []
    asked: list[tuple[str, str, int]] = []
    num_teacher = 0
    for number in range(1, num_rounds + 1):
        draft = writes("student", path)
        asked.append(("student", path, budget))

        def one_round(correction: str, end: str) -> sequential.Result:
            return sequential.run(
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
