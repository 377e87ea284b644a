"""Cuts a token stream into steps without losing or changing a character."""

from collections.abc import Sequence

from proxy.core.types import Step


class Segmenter:
    """Ends steps right after `delimiter`, at the end of the text, or at a token cap.

    The text of all steps, joined, is the text that was fed, up to the cap. A token that straddles
    two steps counts once, for the step in which it ends.
    """

    def __init__(self, delimiter: str, max_step_tokens: int, max_total_tokens: int) -> None:
        self._delimiter = delimiter
        self._max_step_tokens = max_step_tokens
        self._max_total_tokens = max_total_tokens
        self._total_tokens = 0
        self.open_text = ""
        """The text after the last step that ended."""
        self.open_tokens = 0
        """The tokens of that text."""
        self.exhausted = False
        """A token cap was reached: nothing more may be fed."""
        self.step_was_cut = False
        """The cap was a step's, which the author does not know, so it is still writing."""

    def feed(self, piece: str) -> list[Step]:
        """Take the text of one token; return the steps that it ended, oldest first."""
        # The delimiter may have begun in the text before this piece.
        search_from = max(0, len(self.open_text) - len(self._delimiter) + 1)
        self.open_text += piece
        self._total_tokens += 1
        steps: list[Step] = []
        while (found := self.open_text.find(self._delimiter, search_from)) >= 0:
            end = found + len(self._delimiter)
            ends_with_token = end == len(self.open_text)
            steps.append(Step(self.open_text[:end], self.open_tokens + ends_with_token))
            self.open_text = self.open_text[end:]
            self.open_tokens = 0
            search_from = 0
            if ends_with_token:
                break
        else:
            self.open_tokens += 1
        self.step_was_cut = self.open_tokens >= self._max_step_tokens
        if self.step_was_cut or self._total_tokens >= self._max_total_tokens:
            self.exhausted = True
            steps.extend(self.close())
        return steps

    def extend(self, pieces: Sequence[str]) -> bool:
        """Take all pieces at once, if they end no step and reach no cap; else take none of them.

        A fast version of `feed`, for nearly all text of a stream.
        """
        num = len(pieces)
        if self.open_tokens + num >= self._max_step_tokens:
            return False
        if self._total_tokens + num >= self._max_total_tokens:
            return False
        text = "".join(pieces)
        seam = self.open_text[max(0, len(self.open_text) - len(self._delimiter) + 1) :]
        if self._delimiter in seam + text:
            return False
        self.open_text += text
        self.open_tokens += num
        self._total_tokens += num
        return True

    def close(self) -> list[Step]:
        """Return the rest of the text as the last step, unless it is empty: the text has ended."""
        steps = [Step(self.open_text, self.open_tokens)] if self.open_text else []
        self.open_text = ""
        self.open_tokens = 0
        return steps


def split_steps(text: str, delimiter: str) -> list[str]:
    """Cut a whole text into its steps; no token caps apply."""
    parts = text.split(delimiter)
    steps = [part + delimiter for part in parts[:-1]]
    return [*steps, parts[-1]] if parts[-1] else steps
