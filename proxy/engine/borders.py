r"""Finds the places at which every tokenizer cuts a text, and divides texts there.

A border between steps need not be a border between tokens: of `"x = 4. So"`, cut after `". "`, the
token `" So"` begins in one step and ends in the next. Two places, called cuts, are borders of
tokens whatever the text around them is: before a space that follows a visible character, and after
a newline that a visible character follows. Where a model has no token in which text follows a
newline, a blank line is such a place, too, whatever comes, and a verdict need not wait for more
text.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from proxy.backends.base import Segment

# The exceptions are for o200k_base, which has tokens such as "\n//", and for Gemma 3's "> </".
_CUT = re.compile(r"(?<=\n)(?=[^\s/])|(?<=[^\s>])(?= )")
MAX_AHEAD = 64
"""The most characters after a border that decide about the tokens before it: where no cut comes,
as in a script without spaces, tokens do not reach so far."""
# The characters before a border in which a cut is sought first: a word or two.
_NEAR: Final = 16
MAX_BEHIND = 256
"""The most characters before a border from which the tokens after it are found, where no cut comes.
Tokens that begin at a wrong place are right again long before that."""

NEWLINES: Final = tuple(
    "x.\n\n\n\n\nx,\n\n\n  x:\n\n    )\n\n\t{\n \n\r\n//\n/}\n\n\u3000\n\u00a0x"
)
"""Newlines and what may share a token with them, character by character."""


def newlines_end_tokens(spelt: Iterable[Segment]) -> bool:
    """Return whether a token ends with every newline of `NEWLINES`, given the tokens that end in
    each of its characters.
    """
    return all(
        before.token_ids or not (after.text.isspace() or after.text == "/")
        for before, after in pairwise(spelt)
        if before.text == "\n"
    )


def ahead_of(before: str, after: str, *, blank_lines_end: bool) -> str | None:
    """Return the beginning of `after` that decides which tokens end in `before`.

    Empty if a token ends with `before` in any case. None if `after` is too short to decide.
    `blank_lines_end` says that a token ends with every blank line.
    """
    if blank_lines_end and before.endswith("\n\n"):
        return ""
    near = after[:MAX_AHEAD]
    cut = _CUT.search(before[-1:] + near, 1)
    if cut is not None:
        num = cut.start() - 1
        return near[: num + 1] if num else ""
    return near if len(near) == MAX_AHEAD else None


def decisive(before: str, after: str, *, blank_lines_end: bool) -> str:
    """Return the beginning of `after` as `ahead_of` does; all of it if it is too short."""
    ahead = ahead_of(before, after, blank_lines_end=blank_lines_end)
    return after if ahead is None else ahead


def behind_of(texts: Iterable[str], after: str) -> str:
    """Return the text before `after` that decides which tokens `after` begins with.

    `texts` come before `after`, the nearest first. Empty if the border before `after` is a cut.
    """
    before = ""
    for text in texts:
        before = (text + before)[-MAX_BEHIND:]
        cut = _last_cut(before + after[:1], len(before))
        if cut or len(before) == MAX_BEHIND:
            return before[cut:]
    return before


def _last_cut(text: str, most: int) -> int:
    """Return the last cut up to offset `most`; 0 if there is none.

    It is nearly always near, so the text is searched backwards, in parts that double.
    """
    size, end = _NEAR, most
    while end >= 0:
        start = max(0, end - size)
        cuts = [cut.start() for cut in _CUT.finditer(text, start, end + 1)]
        if cuts:
            return cuts[-1]
        end, size = start - 1, 2 * size
    return 0


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a text that can be tokenised on its own; `borders` are offsets inside it."""

    text: str
    borders: tuple[int, ...] = ()

    @property
    def parts(self) -> list[str]:
        """The texts between the borders."""
        ends = (0, *self.borders, len(self.text))
        return [self.text[start:end] for start, end in pairwise(ends)]


def divided(text: str, borders: Iterable[int]) -> list[Piece]:
    """Divide a text at its `borders`, in order, as far as they are cuts.

    A border that is no cut lies inside a piece, which reaches to the cuts around it.
    """
    pieces: list[Piece] = []
    start = end = 0
    inside: list[int] = []

    def close(at: int) -> None:
        nonlocal start, end
        if inside:
            pieces.append(Piece(text[start:end], tuple(border - start for border in inside)))
            inside.clear()
            start = end
        if at > start:
            pieces.append(Piece(text[start:at]))
        start = end = at

    for border in borders:
        if border in {0, len(text)} or _CUT.match(text, border):
            close(border)
            continue
        before, after = _last_cut(text, border), _CUT.search(text, border)
        if not inside or before > end:
            close(before)
        inside.append(border)
        end = len(text) if after is None else after.start()
    close(len(text))
    return pieces
