"""Which of a stream's tokens spell the text that has come, so that a broken one can be resumed."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from sys import intern
from typing import Any, NamedTuple, Self

from proxy.backends.tokens.alignment import pieces_of

# What a decoder writes for bytes that are no whole character.
_HALF = "\ufffd"
# After so many tokens that could not be matched with the text, no more attempt is made.
_GIVE_UP = 1000


class Token(NamedTuple):
    """A written token's id and its own string, as the server tells it.

    No dataclass: one is made for every token, and a tuple takes a third of the time.
    """

    id: int
    string: str

    @classmethod
    def of(cls, token_id: Any, string: Any) -> Self:  # noqa: ANN401 - as JSON has them
        """A text repeats its tokens, and their strings are kept: interned, 32k tokens take 2 MB
        less.
        """
        return cls(int(token_id), intern(string))


@dataclass(frozen=True, slots=True)
class Spelt:
    """New pieces, one a token, and the ids as in `base.Draft`."""

    pieces: tuple[str, ...]
    token_ids: tuple[int, ...] | None


@dataclass(slots=True)
class Spelling:
    """Cuts a stream's text into one piece a token, and finds the tokens that spell it.

    Servers hold text back (half a character, a stop string in the making), so the text that has
    come may end inside a token, whose beginning then waits for its rest. Text that the strings do
    not match is handed on as it is, with ids unknown: until a token in ASCII shows where text and
    tokens are together again (half characters, whose strings say nothing), or for good (a special
    token, which has a string but no text).
    """

    _tokens: list[Token] = field(default_factory=list)
    _text: str = ""
    _in_step: bool = True
    """`_tokens` and `_text` wait for more. Else they were handed on, and are not yet matched."""
    _lost: bool = False

    def feed(self, text: str, tokens: Sequence[Token]) -> Spelt:
        """Take an event's text and tokens."""
        if self._lost:
            return Spelt(pieces_of(text, [token.string for token in tokens]), None)
        if self._in_step and not self._tokens and not self._text and _spell(tokens, text):
            return Spelt(tuple(token.string for token in tokens), _ids(tokens))
        self._tokens += tokens
        self._text += text
        if self._in_step:
            num, self._in_step = self._matched()
            if self._in_step:
                done, self._tokens = self._tokens[:num], self._tokens[num:]
                pieces = tuple(token.string for token in done)
                self._text = self._text[sum(map(len, pieces)) :]
                return Spelt(pieces, _ids(done))
            text, tokens = self._text, self._tokens
        pieces = pieces_of(text, [token.string for token in tokens])
        token_ids = None
        if self._together():
            token_ids = _ids(self._tokens)
            self._tokens, self._text, self._in_step = [], "", True
        elif len(self._tokens) > _GIVE_UP:
            self._tokens, self._text, self._lost = [], "", True
        return Spelt(pieces, token_ids)

    def rest(self) -> tuple[str, ...]:
        """The stream has ended: the pieces that waited."""
        return pieces_of(self._text, [t.string for t in self._tokens]) if self._in_step else ()

    def _matched(self) -> tuple[int, bool]:
        """How many tokens the text spells in full, and whether the others just wait for theirs."""
        num = start = 0
        for index, token in enumerate(self._tokens):
            if _HALF in token.string:
                return 0, False
            if not self._text.startswith(token.string, start):
                return num, token.string.startswith(self._text[start:])
            start += len(token.string)
            if token.string:  # an empty one may be half of the character that comes next
                num = index + 1
        return num, start == len(self._text)

    def _together(self) -> bool:
        """Whether the text ends where its last token does. It holds the text of all tokens in
        order, so that is so where it holds all of their ASCII and the last token is nothing else.
        """
        last = self._tokens[-1].string if self._tokens else ""
        if not last or not last.isascii() or not self._text.endswith(last):
            return False
        return _ascii_of(self._text) == _ascii_of("".join(t.string for t in self._tokens))


def _spell(tokens: Sequence[Token], text: str) -> bool:
    """Whether nothing of it waits for more, as nearly always; `_matched` would find the same."""
    if not tokens or not tokens[-1].string or _HALF in text:
        return False
    return "".join([token.string for token in tokens]) == text


def _ids(tokens: Sequence[Token]) -> tuple[int, ...]:
    return tuple(token.id for token in tokens)


def _ascii_of(text: str) -> bytes:
    return text.encode("ascii", "ignore")
