"""Cuts a token stream into steps without losing or changing a character.

A step ends right after the first of the delimiters, and never within fenced code.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from proxy.core.params import Delimiters
from proxy.core.types import Step

# The most pieces that are searched for the end of a step together. A search of all that came would
# make an event of many steps quadratic.
_AT_ONCE: Final = 64
# A fence is at the start of its line. More of a line is not kept, because lines have no bound.
_LINE_CHARS: Final = 1000


class FencedCode:
    """Follows a text through its lines, and knows whether its end lies within fenced code
    (https://spec.commonmark.org/0.31.2/#fenced-code-blocks).

    What it says depends on the text up to there only, so it is the same however the text arrives: a
    line that begins as a fence counts as one until its end shows that it is none.
    """

    __slots__ = ("_fence", "_line")

    def __init__(self, fence: str = "", line: str = "") -> None:
        """`fence` is the one that is open, and `line` what there is of the last line."""
        self._fence = fence
        self._line = line

    @property
    def is_open(self) -> bool:
        """Return whether the end of the text is within code."""
        return bool(self._fence or _opening(self._line))

    def take(self, text: str) -> None:
        """Follow the text further."""
        *ended, last = text.split("\n")
        for line in ended:
            self._end_line((self._line + line)[:_LINE_CHARS])
        self._line = (self._line + last)[:_LINE_CHARS]

    def _end_line(self, line: str) -> None:
        self._line = ""
        if not self._fence:
            self._fence = _opening(line)
        else:
            mark, rest = _fence(line)
            if mark.startswith(self._fence) and not rest.strip():
                self._fence = ""

    def fork(self) -> "FencedCode":
        """Return another one that stands at the same place."""
        return FencedCode(self._fence, self._line)


def _opening(line: str) -> str:
    """Return the fence with which the line opens code; empty if it does not."""
    mark, rest = _fence(line)
    return "" if mark.startswith("`") and "`" in rest else mark


def _fence(line: str) -> tuple[str, str]:
    """Return the fence with which the line begins, and the rest; empty if it begins with none."""
    bare = line.lstrip(" ")
    if len(line) - len(bare) <= 3:
        for character in "`~":
            rest = bare.lstrip(character)
            if len(mark := bare[: len(bare) - len(rest)]) >= 3:
                return mark, rest
    return "", ""


def texts_of(delimiter: str | Delimiters) -> tuple[str, ...]:
    """Return the texts that end a step."""
    return delimiter.any if isinstance(delimiter, Delimiters) else (delimiter,)


def code_before(delimiter: str | Delimiters, text: str = "") -> FencedCode | None:
    """Return where `text` stands; None if steps may end within code."""
    if isinstance(delimiter, str) or not delimiter.keep_code:
        return None
    code = FencedCode()
    code.take(text)
    return code


class StepEnds:
    """Finds the ends of steps in a text that arrives in pieces.

    A step ends as soon as one of the delimiters is complete in it. Of several, the one that is
    complete first ends the step, so a delimiter that begins with another one never does.
    """

    __slots__ = ("_code", "_delimiters", "_longest", "_seam")

    def __init__(self, delimiter: str | Delimiters, code: FencedCode | None = None) -> None:
        """`code` is where the text before stands, None at the start of a text."""
        self._delimiters = texts_of(delimiter)
        self._longest = max(map(len, self._delimiters))
        self._seam = ""
        """The end of the open step, as far as a delimiter could have begun in it."""
        self._code = code_before(delimiter) if code is None else code.fork()

    def passes(self, text: str) -> bool:
        """Take the next piece of the text if no delimiter is complete in it; return whether it was
        taken. Nearly all pieces are.
        """
        joined = self._seam + text
        for delimiter in self._delimiters:
            if delimiter in joined:
                return False
        if self._code is not None:
            self._code.take(text)
        self._seam = joined[max(0, len(joined) - self._longest + 1) :]
        return True

    def take(self, text: str) -> Iterator[int]:
        """Yield the ends of steps in the next piece of the text, in order. The piece is taken when
        all of them have been asked for.
        """
        joined, num_before = self._seam + text, len(self._seam)
        step_start, at = 0, num_before
        coming = dict.fromkeys(self._delimiters, 0)
        """By delimiter the end that comes next, as it was last found."""
        nowhere = len(joined) + self._longest
        while True:
            for delimiter, end in coming.items():
                if end <= at:
                    start = max(step_start, at - len(delimiter) + 1)
                    found = joined.find(delimiter, start)
                    coming[delimiter] = nowhere if found < 0 else found + len(delimiter)
            end = min(coming.values())
            if end > len(joined):
                break
            is_code = self._follow(joined[at:end])
            at = end
            if not is_code:
                step_start = end
                # What a delimiter shares with the step before is no longer its own.
                coming = {
                    one: (until if until - len(one) >= end else 0) for one, until in coming.items()
                }
                yield end - num_before
        self._follow(joined[at:])
        self._seam = joined[max(step_start, len(joined) - self._longest + 1) :]

    def _follow(self, text: str) -> bool:
        """Follow the text; returns whether its end is within code."""
        if self._code is None:
            return False
        self._code.take(text)
        return self._code.is_open

    def first(self, text: str) -> int | None:
        """Return the first end that `take` would yield, without taking anything."""
        seam, code = self._seam, self._code
        self._code = None if code is None else code.fork()
        found = next(self.take(text), None)
        self._seam, self._code = seam, code
        return found


class Segmenter:
    """Ends steps right after a delimiter, at the end of the text, or at a token cap.

    The text of all steps, joined, is the text that was fed, up to the cap. A token that straddles
    two steps counts once, for the step in which it ends.
    """

    def __init__(
        self,
        delimiter: str | Delimiters,
        max_step_tokens: int,
        max_total_tokens: int,
        code: FencedCode | None = None,
    ) -> None:
        """`code` is where the text before stands, None at the start of a text."""
        self._ends = StepEnds(delimiter, code)
        self._max_step_tokens = max_step_tokens
        self._max_total_tokens = max_total_tokens
        self.total_tokens = 0
        """The tokens that were fed."""
        # The text after the last step that ended. Joining it to every piece would make a long step
        # quadratic, so it is kept in parts, of which each is longer than the next.
        self._parts: list[str] = []
        self.open_length = 0
        """The characters of that text."""
        self.open_tokens = 0
        """The tokens of that text."""
        self.exhausted = False
        """A token cap was reached: nothing more may be fed."""
        self.step_was_cut = False
        """The cap was a step's, which the author does not know, so it is still writing."""
        self.last_is_open = False
        """The step that was returned last has no delimiter at its end: a cap or the text's end cut
        it."""

    def open_text(self, start: int = 0) -> str:
        """Return the text after the last step that ended, from its character `start` on.

        It costs as much as the text that it returns.
        """
        missing = self.open_length - start
        found: list[str] = []
        for part in reversed(self._parts):
            if missing <= 0:
                break
            found.append(part[max(0, len(part) - missing) :])
            missing -= len(part)
        return "".join(reversed(found))

    def feed(self, piece: str) -> list[Step]:
        """Take the text of one token; return the steps that it ended, oldest first."""
        self.total_tokens += 1
        steps: list[Step] = []
        if self._ends.passes(piece):
            self._add(piece, 1)
        else:
            steps = self._cut(piece)
        self.step_was_cut = self.open_tokens >= self._max_step_tokens
        if self.step_was_cut or self.total_tokens >= self._max_total_tokens:
            self.exhausted = True
            steps.extend(self.close())
        return steps

    def _cut(self, piece: str) -> list[Step]:
        """End the steps whose delimiters `piece` completes; the rest of it stays open."""
        steps: list[Step] = []
        start = 0
        for end in self._ends.take(piece):
            text = self.open_text() + piece[start:end]
            steps.append(Step(text, self.open_tokens + (end == len(piece))))
            self._clear()
            start = end
        rest = piece[start:]
        if rest or not steps:  # nothing ends at a delimiter within code
            self._add(rest, 1)
        return steps

    def _add(self, text: str, num_tokens: int) -> None:
        self.open_length += len(text)
        self.open_tokens += num_tokens
        # Each character is copied as often as its part doubles, so a few times only.
        while self._parts and len(self._parts[-1]) <= len(text):
            text = self._parts.pop() + text
        self._parts.append(text)

    def _clear(self) -> None:
        self._parts.clear()
        self.open_length = 0
        self.open_tokens = 0

    def feed_all(self, pieces: Sequence[str]) -> list[Step]:
        """Take the text of tokens, one piece each, up to a cap; return the steps that they ended.

        As `feed` for each of them, but fast where they end no step, as nearly all do.
        """
        steps: list[Step] = []
        num_taken = self._extend(pieces[:_AT_ONCE])
        while num_taken < len(pieces):
            steps += self.feed(pieces[num_taken])
            if self.exhausted:
                break
            num_taken += 1
            num_taken += self._extend(pieces[num_taken : num_taken + _AT_ONCE])
        return steps

    def _extend(self, pieces: Sequence[str]) -> int:
        """Take the first pieces at once, as far as they end no step and reach no cap; return how
        many were taken.
        """
        left = min(
            self._max_step_tokens - self.open_tokens, self._max_total_tokens - self.total_tokens
        )
        num = min(len(pieces), left - 1)
        if num <= 0:
            return 0
        text = "".join(pieces[:num])
        if not self._ends.passes(text):
            end = self._ends.first(text)
            if end is not None:
                num = 0
                while end > len(pieces[num]):  # up to the piece in which the delimiter ends
                    end -= len(pieces[num])
                    num += 1
                if not num:
                    return 0
                text = "".join(pieces[:num])
            list(self._ends.take(text))  # it holds no end
        self._add(text, num)
        self.total_tokens += num
        return num

    def close(self) -> list[Step]:
        """Return the rest of the text as the last step, unless it is empty: the text has ended."""
        steps = [Step(self.open_text(), self.open_tokens)] if self.open_length else []
        self.last_is_open = bool(steps)
        self._clear()
        return steps


def split_steps(text: str, delimiter: str | Delimiters, before: str = "") -> list[str]:
    """Cut a text into its steps; no token caps apply. `before` is the text that it continues."""
    if isinstance(delimiter, str):
        parts = text.split(delimiter)
        steps = [part + delimiter for part in parts[:-1]]
        return [*steps, parts[-1]] if parts[-1] else steps
    return list(steps_of(text, delimiter, before))


def steps_of(text: str, delimiter: str | Delimiters, before: str = "") -> Iterator[str]:
    """Yield the steps of `split_steps` one after the other."""
    start = 0
    for end in StepEnds(delimiter, code_before(delimiter, before)).take(text):
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]


def text_after(steps: Sequence[str], num_steps: int, segmenter: Segmenter, num_chars: int) -> str:
    """Return what was written after the first `num_steps` steps: `num_chars` of it, or all."""
    text = ""
    for index in range(num_steps, len(steps)):
        text += steps[index]
        if len(text) >= num_chars:
            return text[:num_chars]
    return (text + segmenter.open_text())[:num_chars]
