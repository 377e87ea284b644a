"""Assembles the text of a model that takes only chat messages: its seams, thoughts and tokens."""

import re
from collections.abc import Sequence

from proxy.backends.base import Call, Question, Reader, Segment
from proxy.errors import RequestError

# A word with the space before it, as tokenizers cut. Line ends are pieces of their own, so that no
# piece spans the end of a step.
_WORD = re.compile(r"[^\S\n]*\S+|\n+|[^\S\n]+")
_OPEN, _CLOSE = "<think>", "</think>"


def seam_of(so_far: str) -> str:
    """A begun answer as it is sent, without the trailing whitespace that APIs cut off or refuse."""
    return so_far.rstrip()


class ChatText:
    """Joins the parts of an answer into the text that continues `so_far`.

    If whitespace was cut off the begun answer, the model may write it again: line ends, or the
    blanks in the place of blanks, are dropped, because the text already has them. The indentation
    of a line stays, but one blank alone at the beginning of a line separates words that the model
    believes to be on one line. Thoughts that the API sends separately are put between `<think>` and
    `</think>`, unless the begun answer is inside a thought already.
    """

    def __init__(self, so_far: str, *, keep_reasoning: bool) -> None:
        self._keep_reasoning = keep_reasoning
        self._cut = so_far[len(seam_of(so_far)) :]
        """Whitespace that the model may write again; empty once other text has come."""
        self._leading = ""
        """Whitespace that the model has written so far in its place."""
        self._inside = so_far.rfind(_OPEN) > so_far.rfind(_CLOSE)
        self._has_thoughts = False

    def feed(self, reasoning: str, content: str) -> str:
        """Return the text that these parts of the answer add."""
        text = ""
        if reasoning and self._keep_reasoning:
            self._has_thoughts = True
            if not self._inside:
                self._inside = True
                text += f"{_OPEN}\n"
            text += reasoning
        if content:
            if self._inside and self._has_thoughts:
                self._inside = False
                text += f"\n{_CLOSE}\n\n"
            text += content
        if not self._cut:
            return text
        begun = self._leading + text
        rest = begun.lstrip()
        if not rest:
            self._leading = begun
            return ""
        kept = _new_part(begun[: len(begun) - len(rest)], self._cut)
        self._cut = self._leading = ""
        return kept + rest


def _new_part(leading: str, cut: str) -> str:
    """Return what an answer's leading whitespace adds to the whitespace that was cut off."""
    if "\n" in leading:
        if "\n" in cut:
            return leading[leading.rindex("\n") + 1 :]
        return leading[leading.index("\n") :]
    return "" if "\n" not in cut or leading == " " else leading


async def counted_pieces(text: str, reader: Reader, call: Call) -> tuple[str, ...]:
    """Cut the text into as many pieces as `reader` counts tokens, keeping words whole."""
    words = _WORD.findall(text)
    pieces: list[str] = []
    for word, segment in zip(words, await reader.encode(words, call), strict=True):
        pieces += [""] * (len(segment.token_ids) - 1)
        pieces.append(word)
    return tuple(pieces)


class CountingReader:
    """Counts tokens for a chat-only server, which never sees their ids."""

    def __init__(self, upstream: str, tokens: Reader) -> None:
        self._upstream = upstream
        self._tokens = tokens

    async def render(self, question: Question, call: Call) -> Segment:
        """Raises `RequestError` for a raw prompt."""
        if question.prompt is not None:
            message = f"upstream '{self._upstream}' takes messages only, not a raw prompt"
            raise RequestError(message, param="prompt")
        return await self._tokens.render(question, call)

    async def encode(self, texts: Sequence[str], call: Call) -> list[Segment]:
        return await self._tokens.encode(texts, call)

    async def encode_running(
        self, texts: Sequence[Sequence[str]], call: Call
    ) -> list[list[Segment]]:
        return await self._tokens.encode_running(texts, call)
