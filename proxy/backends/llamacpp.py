"""llama.cpp's own HTTP server (`/completion`, `/tokenize`, `/apply-template`, `/props`).

API: https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md. The server gives no
log-probabilities of a prompt, so given text is scored by forced decoding: one token a request.
"""

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any, TypeVar

import orjson

from proxy.backends.alignment import as_in_running_text, without_follower
from proxy.backends.base import Call, Context, Draft, Question, Sampling, Scores, Segment
from proxy.backends.http import UpstreamClient
from proxy.backends.template import ChatTemplate
from proxy.core.scoring import entropy, oracle_value
from proxy.core.types import FinishReason, StepScore
from proxy.errors import UpstreamFailed, UpstreamMalformed, UpstreamUnreachable

T = TypeVar("T")

# Added to the logit of the one token that may come; the log-probabilities are taken before it.
_FORCE = 1000
# llama.cpp writes the logarithm of 0 as the lowest float32, for JSON has no -inf.
_LOWEST = -1e30
_END_REASONS: dict[str, FinishReason] = {"eos": "stop", "word": "stop", "limit": "length"}


class SlotPool:
    """Hands out the server's slots, one request each, a trajectory's last slot first.

    A slot holds the cache of what it decoded last; forced decoding without that cache would
    compute the whole context anew for every step.
    """

    def __init__(self, num_slots: int) -> None:
        self._free = asyncio.Semaphore(num_slots)
        # Least recently used first.
        self._idle: dict[int, str | None] = dict.fromkeys(range(num_slots))

    @asynccontextmanager
    async def lease(self, session_id: str) -> AsyncIterator[int]:
        """A slot for the time of one request (or of one run of forced tokens)."""
        async with self._free:
            own = (slot for slot, owner in self._idle.items() if owner == session_id)
            slot = next(own, next(iter(self._idle)))
            del self._idle[slot]
            try:
                yield slot
            finally:
                self._idle[slot] = session_id


class LlamaCpp:
    """Student or teacher on a llama.cpp server."""

    scoring = "forced_decode"

    def __init__(
        self,
        client: UpstreamClient,
        chat_template: ChatTemplate | None,
        num_slots: int,
        follower: int,
    ) -> None:
        self._client = client
        self._template = chat_template
        self._slots = SlotPool(num_slots)
        self._follower = follower

    @classmethod
    async def connect(
        cls, client: UpstreamClient, chat_template: ChatTemplate | None
    ) -> "LlamaCpp":
        """Ask the server what it has."""
        props = await client.get("/props")
        try:
            num_slots = int(props["total_slots"])
        except (KeyError, TypeError, ValueError) as error:
            message = "/props names no total_slots; is this llama.cpp's own server?"
            raise UpstreamMalformed(client.upstream, message) from error
        body = {"content": as_in_running_text("\n"), "add_special": False}
        reply = await client.post("/tokenize", body, Call("connect"))
        return cls(client, chat_template, num_slots, int(reply["tokens"][-1]))

    async def check(self) -> None:
        await self._client.get("/health")

    async def render(self, question: Question, call: Call) -> Segment:
        if question.prompt is not None:
            text = question.prompt
        elif self._template is not None:
            text = self._template.render(question.messages)
        else:
            messages = [{"role": m.role, "content": m.content} for m in question.messages]
            reply = await self._client.post("/apply-template", {"messages": messages}, call)
            text = self._field(reply, "prompt", str)
        body = {"content": text, "add_special": True, "parse_special": True}
        reply = await self._client.post("/tokenize", body, call)
        return Segment(text, tuple(self._field(reply, "tokens", list)))

    async def encode(self, texts: Sequence[str], call: Call) -> list[Segment]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._encode(text, call)) for text in texts]
        return [task.result() for task in tasks]

    async def _encode(self, text: str, call: Call) -> Segment:
        body = {
            "content": as_in_running_text(text),
            "add_special": False,
            "parse_special": False,  # what the student writes is text, whatever it looks like
            "with_pieces": True,
        }
        rows = self._field(await self._client.post("/tokenize", body, call), "tokens", list)
        ids = without_follower(text, [row["id"] for row in rows], self._follower)
        pieces = b"".join(_piece_bytes(row["piece"]) for row in rows[: len(ids or ())])
        if ids is None or pieces != text.encode():
            message = f"its tokens of {text[-40:]!r} do not spell that text"
            raise UpstreamMalformed(self._client.upstream, message)
        return Segment(text, ids)

    async def write(
        self, context: Context, sampling: Sampling, max_tokens: int, call: Call
    ) -> AsyncGenerator[Draft]:
        body: dict[str, Any] = {
            "prompt": context.token_ids,
            "n_predict": max_tokens,
            "stream": True,
            "cache_prompt": True,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            # Naming the samplers leaves out the server's defaults (top-k 40, min-p 0.05, ...).
            "samplers": ["temperature", "top_p"],
            "stop": list(sampling.stop),
        }
        if sampling.seed is not None:
            body["seed"] = sampling.seed & 0x7FFFFFFF
        async with self._slots.lease(call.session_id) as slot:
            body["id_slot"] = slot
            num_tokens = 0
            async with self._client.stream("/completion", body, call) as events:
                async for payload in events:
                    row = self._event(payload)
                    draft = self._draft(row, row["tokens_predicted"] - num_tokens)
                    num_tokens = row["tokens_predicted"]
                    yield draft
                    if draft.end is not None:
                        return
        raise UpstreamUnreachable(self._client.upstream, "its stream broke off before the end")

    def _event(self, payload: bytes) -> dict[str, Any]:
        row = self._decoded(payload)
        if "error" in row:
            raise UpstreamFailed(self._client.upstream, f"the stream failed: {row['error']}")
        if not isinstance(row.get("content"), str) or "tokens_predicted" not in row:
            message = f"a stream event without content and tokens_predicted: {payload[:200]!r}"
            raise UpstreamMalformed(self._client.upstream, message)
        return row

    def _draft(self, row: dict[str, Any], num_new: int) -> Draft:
        """Text that waited (half a character, a stop string in the making) comes with the last of
        its tokens; the count says how many came before it.
        """
        text = row["content"]
        if not row.get("stop"):
            return Draft(_pieces(text, num_new))
        end = _END_REASONS.get(row.get("stop_type", ""))
        if end is None:
            message = f"unknown stop_type {row.get('stop_type')!r}"
            raise UpstreamMalformed(self._client.upstream, message)
        if row["stop_type"] == "eos":
            num_new -= 1  # the end token is counted, but it is no text
        return Draft(_pieces(text, num_new), end, int(row["timings"]["cache_n"]))

    async def score(
        self, context: Context, num_new: int, top_k: int, call: Call, *, entropy_known: bool
    ) -> Scores:
        # The entropy comes free with a step's first token, so `entropy_known` saves nothing here.
        del entropy_known
        ids, bounds = context.token_ids, context.bounds[-num_new - 1 :]
        scores: list[StepScore] = []
        num_cached = -1
        async with self._slots.lease(call.session_id) as slot:
            for start, end in pairwise(bounds):
                logprobs: list[float] = []
                top: list[float] = []
                for position in range(start, end):
                    num_top = top_k if position == start else 1
                    row = await self._forced(ids, position, num_top, slot, call)
                    if num_cached < 0:
                        num_cached = row["timings"]["cache_n"]
                    logprob, candidates = self._logprobs(row, ids[position], num_top)
                    logprobs.append(logprob)
                    top = candidates if position == start else top
                scores.append(self._score(logprobs, top, top_k))
        num_tokens = bounds[-1] - bounds[0]
        return Scores(tuple(scores), None, num_tokens, max(0, num_cached))

    async def _forced(
        self, ids: list[int], position: int, num_top: int, slot: int, call: Call
    ) -> dict[str, Any]:
        """Let the server decode exactly the token at `position` after the ids before it."""
        body = {
            "prompt": ids[:position],
            "n_predict": 1,
            "n_probs": num_top,
            "temperature": 0,
            "logit_bias": [[ids[position], _FORCE]],
            "cache_prompt": True,
            "id_slot": slot,
        }
        row: dict[str, Any] = await self._client.post("/completion", body, call)
        return row

    def _logprobs(
        self, row: dict[str, Any], target: int, num_top: int
    ) -> tuple[float, list[float]]:
        try:
            entry = row["completion_probabilities"][0]
            token, logprob = entry["id"], entry["logprob"]
            top = [candidate["logprob"] for candidate in entry["top_logprobs"]]
        except (KeyError, IndexError, TypeError) as error:
            message = "/completion gave no completion_probabilities"
            raise UpstreamMalformed(self._client.upstream, message) from error
        if token != target or len(top) < num_top:
            message = (
                f"asked for token {target} and {num_top} candidates, got {token} and {len(top)}"
            )
            raise UpstreamMalformed(self._client.upstream, message)
        return _finite(logprob), [_finite(x) for x in top]

    def _score(self, logprobs: list[float], top: list[float], top_k: int) -> StepScore:
        try:
            return StepScore(oracle_value(logprobs), entropy(top, top_k), len(logprobs))
        except (ValueError, TypeError) as error:
            raise UpstreamMalformed(self._client.upstream, str(error)) from error

    def _decoded(self, payload: bytes) -> dict[str, Any]:
        try:
            row: dict[str, Any] = orjson.loads(payload)
        except orjson.JSONDecodeError as error:
            message = f"a stream event is no JSON: {payload[:200]!r}"
            raise UpstreamMalformed(self._client.upstream, message) from error
        return row

    def _field(self, reply: Any, name: str, kind: type[T]) -> T:  # noqa: ANN401
        value = reply.get(name) if isinstance(reply, dict) else None
        if not isinstance(value, kind):
            raise UpstreamMalformed(self._client.upstream, f"the answer has no {name}")
        return value


def _pieces(text: str, num_tokens: int) -> tuple[str, ...]:
    if num_tokens <= 0:
        return (text,) if text else ()
    return ("",) * (num_tokens - 1) + (text,)


def _piece_bytes(piece: str | list[int]) -> bytes:
    """A token's text; llama.cpp writes one that is no valid UTF-8 as a list of bytes."""
    return piece.encode() if isinstance(piece, str) else bytes(piece)


def _finite(logprob: float | None) -> float:
    if logprob is None:
        return math.nan  # core refuses it: missing is not zero
    return -math.inf if logprob < _LOWEST else logprob
