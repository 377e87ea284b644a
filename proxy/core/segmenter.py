"""Cuts a token stream into steps without losing or changing a character."""

from collections.abc import Sequence
from typing import Final

from proxy.core.types import Step

# The most pieces that are searched for the end of a step together. A search of all that came would
# make an event of many steps quadratic.
_AT_ONCE: Final = 64


class Segmenter:
    """Ends steps right after `delimiter`, at the end of the text, or at a token cap.

    The text of all steps, joined, is the text that was fed, up to the cap. A token that straddles
    two steps counts once, for the step in which it ends.
    """

    def __init__(self, delimiter: str, max_step_tokens: int, max_total_tokens: int) -> None:
        self._delimiter = delimiter
        self._max_step_tokens = max_step_tokens
        self._max_total_tokens = max_total_tokens
        self.total_tokens = 0
        """The tokens that were fed."""
        # The text after the last step that ended. Joining it to every piece would make a long step
        # quadratic, so it is kept in parts, of which each is longer than the next.
        self._parts: list[str] = []
        self._seam_length = len(delimiter) - 1
        self._seam = ""
        """The end of that text, as far as a delimiter could have begun in it."""
        self.open_length = 0
        """The characters of that text."""
        self.open_tokens = 0
        """The tokens of that text."""
        self.exhausted = False
        """A token cap was reached: nothing more may be fed."""
        self.step_was_cut = False
        """The cap was a step's, which the author does not know, so it is still writing."""

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
        if self._delimiter in self._seam + piece:
            steps = self._cut(piece)
        else:
            self._add(piece, 1)
        self.step_was_cut = self.open_tokens >= self._max_step_tokens
        if self.step_was_cut or self.total_tokens >= self._max_total_tokens:
            self.exhausted = True
            steps.extend(self.close())
        return steps

    def _cut(self, piece: str) -> list[Step]:
        """End the steps whose delimiters `piece` completes; the rest of it stays open."""
        # The delimiter may have begun in the text before this piece.
        search_from = max(0, self.open_length - len(self._delimiter) + 1)
        text, num_tokens = self.open_text() + piece, self.open_tokens
        steps: list[Step] = []
        start = 0
        while (found := text.find(self._delimiter, search_from)) >= 0:
            end = found + len(self._delimiter)
            ends_with_token = end == len(text)
            steps.append(Step(text[start:end], num_tokens + ends_with_token))
            start = search_from = end
            num_tokens = 0
        self._clear()
        if rest := text[start:]:
            self._add(rest, 1)
        return steps

    def _add(self, text: str, num_tokens: int) -> None:
        self._seam = (self._seam + text)[-self._seam_length :] if self._seam_length else ""
        self.open_length += len(text)
        self.open_tokens += num_tokens
        # Each character is copied as often as its part doubles, so a few times only.
        while self._parts and len(self._parts[-1]) <= len(text):
            text = self._parts.pop() + text
        self._parts.append(text)

    def _clear(self) -> None:
        self._parts.clear()
        self._seam = ""
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
        found = (self._seam + text).find(self._delimiter)
        if found >= 0:
            end = found + len(self._delimiter) - len(self._seam)
            num = 0
            while end > len(pieces[num]):  # up to the piece in which the delimiter ends
                end -= len(pieces[num])
                num += 1
            if not num:
                return 0
            text = "".join(pieces[:num])
        self._add(text, num)
        self.total_tokens += num
        return num

    def close(self) -> list[Step]:
        """Return the rest of the text as the last step, unless it is empty: the text has ended."""
        steps = [Step(self.open_text(), self.open_tokens)] if self.open_length else []
        self._clear()
        return steps


def split_steps(text: str, delimiter: str) -> list[str]:
    """Cut a whole text into its steps; no token caps apply."""
    parts = text.split(delimiter)
    steps = [part + delimiter for part in parts[:-1]]
    return [*steps, parts[-1]] if parts[-1] else steps


def text_after(steps: Sequence[str], num_steps: int, segmenter: Segmenter, num_chars: int) -> str:
    """Return what was written after the first `num_steps` steps: `num_chars` of it, or all."""
    text = ""
    for index in range(num_steps, len(steps)):
        text += steps[index]
        if len(text) >= num_chars:
            return text[:num_chars]
    return (text + segmenter.open_text())[:num_chars]
