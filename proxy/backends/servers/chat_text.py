"""The text of a model that can only be spoken to in chat messages: its seams, its thoughts, its
tokens.
"""

import re
from collections.abc import Sequence

from proxy.backends.base import Call, Question, Reader, Segment
from proxy.errors import RequestError

# A word with the space before it, as tokenizers cut; line ends are apart, so that no piece begins
# before a step's end and ends after it.
_WORD = re.compile(r"[^\S\n]*\S+|\n+|[^\S\n]+")
_OPEN, _CLOSE = "<think>", "</think>"


def seam_of(so_far: str) -> str:
    """A begun answer as it is sent: whitespace at its end is cut off or refused elsewhere, too."""
    return so_far.rstrip()


class ChatText:
    """Joins the parts of an answer into the text that goes on with `so_far`.

    Where whitespace was cut off the begun answer, the model writes it again, or leaves it out:
    what it begins with is dropped, for the text has it. Thoughts that the API sends apart stand
    between `<think>` and `</think>`, unless the begun answer is inside of them already.
    """

    def __init__(self, so_far: str, *, keep_reasoning: bool) -> None:
        self._keep_reasoning = keep_reasoning
        self._at_seam = seam_of(so_far) != so_far
        self._inside = so_far.rfind(_OPEN) > so_far.rfind(_CLOSE)
        self._has_thoughts = False

    def feed(self, reasoning: str, content: str) -> str:
        """The text that these parts of the answer bring."""
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
        if self._at_seam:
            text = text.lstrip()
            self._at_seam = not text
        return text


async def counted_pieces(text: str, reader: Reader, call: Call) -> tuple[str, ...]:
    """The text in as many pieces as `reader` counts tokens, the words being whole."""
    words = _WORD.findall(text)
    pieces: list[str] = []
    for word, segment in zip(words, await reader.encode(words, call), strict=True):
        pieces += [""] * (len(segment.token_ids) - 1)
        pieces.append(word)
    return tuple(pieces)


class CountingReader:
    """The reader of a chat-only server. Its ids are for accounting and are sent nowhere."""

    def __init__(self, upstream: str, tokens: Reader) -> None:
        self._upstream = upstream
        self._tokens = tokens

    async def render(self, question: Question, call: Call) -> Segment:
        """Raises `RequestError` for a raw prompt."""
        if question.prompt is not None:
            message = f"upstream '{self._upstream}' takes messages only, no raw prompt"
            raise RequestError(message, param="prompt")
        return await self._tokens.render(question, call)

    async def encode(self, texts: Sequence[str], call: Call) -> list[Segment]:
        return await self._tokens.encode(texts, call)
