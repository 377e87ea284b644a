"""Asks a server of the user's own for the values of steps; docs/servers/scorer.md has the protocol.

Its values are whatever the server means by them: like a judge's marks they are not V_t (Eq. 5),
need a boundary of their own, and come without an entropy.
"""

import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from typing import Any

import orjson

from proxy.backends.base import (
    Call,
    Context,
    Decoded,
    Draft,
    Message,
    Question,
    Sampling,
    Scores,
    Segment,
)
from proxy.backends.transport.http import UpstreamClient
from proxy.core.types import Scoring, StepScore
from proxy.errors import UpstreamRefused

_PATH = "/score_steps"
_EXAMPLE = Question((Message("user", "What is 12 + 30?"),))
_EXAMPLE_STEPS = ("First, 12 + 30 = 42.\n\n", "So the answer is 42.")
_LONGEST_SHOWN = 60
_WRITES_NOTHING = "a scorer writes nothing"


class HttpScorer:
    """Scores steps at a server that knows the question and the steps as text, and no tokens.

    Nothing is tokenised for it, so contexts have texts alone and every count of tokens is 0. It
    writes nothing.
    """

    scoring: Scoring = "http"
    # How much of a context it computes again is not known.
    recomputes = False

    def __init__(self, client: UpstreamClient) -> None:
        self._client = client

    async def score(
        self,
        context: Context,
        num_new: int,
        top_k: int,  # noqa: ARG002 - for an entropy, which such values do not have
        call: Call,
        *,
        entropy_known: bool,  # noqa: ARG002
    ) -> Scores:
        """Return one value for each of the last `num_new` steps, by one request."""
        body = _request(context.question, context.texts, num_new)
        reply = await self._client.post(_PATH, body, call, loads=_loads)
        values = self._values(reply, num_new)
        return Scores(tuple(StepScore(value, None, 0) for value in values), None, 0, 0)

    async def check(self) -> None:
        """Raise an `UpstreamError` unless the server answers; it is asked for no value."""
        reply = await self._client.post_once(_PATH, _request(_EXAMPLE, (), 0), _loads)
        self._values(reply, 0)

    async def prove(self) -> tuple[float, ...]:
        """Return the values of an example's steps, asked for as `check` asks."""
        num_new = len(_EXAMPLE_STEPS)
        body = _request(_EXAMPLE, _EXAMPLE_STEPS, num_new)
        return self._values(await self._client.post_once(_PATH, body, _loads), num_new)

    def _values(self, reply: Any, num_new: int) -> tuple[float, ...]:  # noqa: ANN401
        """Return the values. Raises `UpstreamMalformed` for any other answer."""
        with self._client.expecting(_PATH):
            values = reply.get("values") if isinstance(reply, dict) else None
            if not isinstance(values, list):
                message = f"an object whose 'values' is a list must come, not {_shown(reply)}"
                raise TypeError(message)
            if len(values) != num_new:
                raise ValueError(f"'values' must have {num_new}, one a new step, not {len(values)}")
            return tuple(_value(value, index) for index, value in enumerate(values))

    async def render(self, question: Question, call: Call) -> Segment:
        """Return nothing: the question travels as it is."""
        del question, call
        return Segment("", ())

    async def encode(self, texts: Sequence[str], call: Call) -> list[Segment]:
        """Return the texts without tokens."""
        del call
        return [Segment(text, ()) for text in texts]

    async def encode_running(
        self, texts: Sequence[Sequence[str]], call: Call
    ) -> list[list[Segment]]:
        """Return the texts without tokens."""
        return [await self.encode(parts, call) for parts in texts]

    def write(
        self, context: Context, sampling: Sampling, max_tokens: int, call: Call
    ) -> AsyncGenerator[Draft]:
        """Refuse, because a scorer writes nothing."""
        del context, sampling, max_tokens, call
        raise UpstreamRefused(self._client.upstream, _WRITES_NOTHING)

    async def decode(self, context: Context, max_tokens: int, call: Call) -> Decoded:
        """Refuse, as `write` does."""
        del context, max_tokens, call
        raise UpstreamRefused(self._client.upstream, _WRITES_NOTHING)


def _request(question: Question, steps: Sequence[str], num_new: int) -> dict[str, Any]:
    asked: dict[str, Any] = {"messages": question.wire_messages()}
    if question.prompt is not None:
        asked = {"prompt": question.prompt}
    return {**asked, "steps": list(steps), "num_new": num_new}


def _loads(content: bytes) -> Any:  # noqa: ANN401
    """Parse an answer, also with the NaN and Infinity that Python's servers write.

    They are no JSON, but a server that means them shall hear about its value.
    """
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError:
        with suppress(ValueError, RecursionError):
            return json.loads(content)
        raise


def _value(value: Any, index: int) -> float:  # noqa: ANN401
    """Return a step's value. Raises ValueError if it is none: an outage never becomes a score."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and 0.0 <= value <= 1.0:
        return float(value)
    raise ValueError(f"values[{index}] must be a number in [0, 1], not {_shown(value)}")


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 1] + "\u2026"
