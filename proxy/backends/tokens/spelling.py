"""Finds the tokens that spell the text of a stream so far, so that the stream can be resumed."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from sys import intern
from typing import Any, NamedTuple, Self

from proxy.backends.tokens.alignment import pieces_of

# Decoders write this for bytes that are not a whole character.
_HALF = "\ufffd"
# After this many tokens that could not be matched with the text, no further attempt is made.
_GIVE_UP = 1000


class Token(NamedTuple):
    """A written token's id and its own string, as the server gives it.

    Not a dataclass: one is made for every token, and a tuple takes a third of the time.
    """

    id: int
    string: str

    @classmethod
    def of(cls, token_id: Any, string: Any) -> Self:  # noqa: ANN401 - as JSON has them
        """Make a token from JSON. A text repeats its tokens, so their strings are interned, which
        saves 2 MB for 32k tokens.
        """
        return cls(int(token_id), intern(string))


class Spelt(NamedTuple):
    """New pieces, one per token, and the ids as in `base.Draft`. Not a dataclass, as `Token`."""

    pieces: tuple[str, ...]
    token_ids: tuple[int, ...] | None


@dataclass(slots=True)
class Spelling:
    """Cuts a stream's text into one piece per token, and finds the tokens that spell it.

    Servers hold text back (half a character, the beginning of a stop string), so the text so far
    may end inside a token, whose beginning then waits for the rest. Text that the strings do not
    match is passed on unchanged, with unknown ids: after half characters, whose strings say
    nothing, until an ASCII token shows where text and tokens are together again; after a special
    token, which has a string but no text, for good.
    """

    _tokens: list[Token] = field(default_factory=list)
    _text: str = ""
    _in_step: bool = True
    """`_tokens` and `_text` wait for more. If False, they were passed on, not yet matched."""
    _lost: bool = False

    def feed_columns(self, text: str, ids: Sequence[Any], strings: Sequence[Any]) -> Spelt:
        """As `feed`, with the ids and strings of an event's tokens as JSON has them.

        Nearly always the strings spell the text, and then no token needs to be made.
        """
        waits = self._tokens or self._text or self._lost or not self._in_step
        if not waits and strings and strings[-1] and _HALF not in text and "".join(strings) == text:
            return Spelt(tuple(map(intern, strings)), tuple(map(int, ids)))
        return self.feed(text, [Token.of(*token) for token in zip(ids, strings, strict=True)])

    def feed(self, text: str, tokens: Sequence[Token]) -> Spelt:
        """Take an event's text and tokens."""
        if self._lost:
            return Spelt(pieces_of(text, [token.string for token in tokens]), None)
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
        """Return the pieces that still wait at the end of the stream."""
        return pieces_of(self._text, [t.string for t in self._tokens]) if self._in_step else ()

    def _matched(self) -> tuple[int, bool]:
        """The number of tokens spelled in full, and whether the others only wait for their text."""
        num = start = 0
        for index, token in enumerate(self._tokens):
            if _HALF in token.string:
                return 0, False
            if not self._text.startswith(token.string, start):
                return num, token.string.startswith(self._text[start:])
            start += len(token.string)
            if token.string:  # an empty string may be half of the character that comes next
                num = index + 1
        return num, start == len(self._text)

    def _together(self) -> bool:
        """Return whether the text ends where its last token does. The text holds all tokens' text
        in order, so it does if it holds all of their ASCII and the last token is pure ASCII.
        """
        last = self._tokens[-1].string if self._tokens else ""
        if not last or not last.isascii() or not self._text.endswith(last):
            return False
        return _ascii_of(self._text) == _ascii_of("".join(t.string for t in self._tokens))


def _ids(tokens: Sequence[Token]) -> tuple[int, ...]:
    return tuple(token.id for token in tokens)


def _ascii_of(text: str) -> bytes:
    return text.encode("ascii", "ignore")
