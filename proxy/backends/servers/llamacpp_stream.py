"""Reads the events of a stream of llama.cpp's `/completion`."""

import math
from dataclasses import dataclass, field
from sys import intern
from typing import Any

from proxy.backends.base import Draft
from proxy.backends.tokens.logprobs import PieceLogprobs
from proxy.backends.tokens.wire_values import end_of, text_of

# llama.cpp writes the logarithm of 0 as the lowest float32, because JSON has no -inf.
_LOWEST = -1e30


@dataclass(slots=True)
class LlamaCppStream:
    """Makes the drafts of one stream from its events."""

    upstream: str
    logprobs: PieceLogprobs
    num_logprobs: int = 0
    """The number of tokens whose log-probabilities have come, or were found missing."""
    num_tokens: int = 0
    """The number of tokens in the text so far."""
    token_ids: list[int] = field(default_factory=list)
    """Ids since the last draft that had some."""
    num_known: int = 0
    """The number of tokens in the text up to the last draft that had ids."""

    def draft(self, row: dict[str, Any]) -> Draft | None:
        """The draft of an event; None for an event without text, such as an end token's.

        Text that the server held back (half a character, the beginning of a stop string) comes with
        the last of its tokens; the count of tokens says how many came before it. The ids of half
        characters never come.
        """
        text, count = text_of(row.get("content")), int(row["tokens_predicted"])
        if not row["stop"]:
            self._add_logprobs(row, count)
            self.token_ids += map(int, row.get("tokens", ()))
            return self._written(text, count) if text else None
        # The end token is counted, but has no text.
        num_new = count - self.num_tokens - (row["stop_type"] == "eos")
        end = end_of(row["stop_type"], self.upstream) or "stop"
        if row["stop_type"] == "eos":
            self.logprobs.drop_last()
        pieces = _pieces(text, num_new)
        piece_logprobs = self.logprobs.take(len(pieces))
        return Draft(pieces, end, int(row["timings"]["cache_n"]), logprobs=piece_logprobs)

    def _add_logprobs(self, row: dict[str, Any], count: int) -> None:
        """Add an event's log-probabilities, after NaN for tokens that end inside a character."""
        if self.logprobs.wanted:
            found = [
                finite_or_nan(entry["logprob"]) for entry in row.get("completion_probabilities", ())
            ]
            self.logprobs.add([None] * (count - self.num_logprobs - len(found)))
            self.logprobs.add(found)
            self.num_logprobs = count

    def _written(self, text: str, count: int) -> Draft:
        pieces = _pieces(text, count - self.num_tokens)
        self.num_tokens = count
        piece_logprobs = self.logprobs.take(len(pieces))
        if len(self.token_ids) != count - self.num_known:
            return Draft(pieces, logprobs=piece_logprobs)
        token_ids, self.token_ids, self.num_known = tuple(self.token_ids), [], count
        return Draft(pieces, token_ids=token_ids, logprobs=piece_logprobs)


def _pieces(text: str, num_tokens: int) -> tuple[str, ...]:
    if num_tokens <= 0:
        return (text,) if text else ()
    if num_tokens == 1:  # a text repeats its tokens
        return (intern(text),)
    return ("",) * (num_tokens - 1) + (text,)


def finite_or_nan(logprob: float | None) -> float:
    """Return a log-probability as it was before JSON; NaN if none came."""
    if logprob is None:
        return math.nan  # core refuses it: missing is not zero
    return -math.inf if logprob < _LOWEST else logprob
