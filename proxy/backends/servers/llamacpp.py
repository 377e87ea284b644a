"""Speaks to llama.cpp's own server (`/completion`, `/tokenize`, `/apply-template`, `/props`).

API: https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md. The server gives no
log-probabilities of a prompt, so given text is scored by forced decoding: one token per request.
"""

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Any, TypeVar

import orjson

from proxy.backends.base import (
    GREEDY,
    Call,
    Context,
    Decoded,
    Draft,
    Question,
    Sampling,
    ScoredToken,
    Scores,
    Segment,
)
from proxy.backends.limits import ModelLimits
from proxy.backends.servers.llamacpp_stream import LlamaCppStream, finite_or_nan
from proxy.backends.servers.model_list import listed_vocabulary, slot_limits
from proxy.backends.servers.sampling_fields import llamacpp_sampling
from proxy.backends.servers.slot_pool import ReplicaSlots
from proxy.backends.servers.vocabulary import Vocabulary
from proxy.backends.token_ids import TokenIds
from proxy.backends.tokens.alignment import (
    Alignment,
    as_in_running_text,
    decoded,
    in_parts,
    without_follower,
)
from proxy.backends.tokens.chat_template import ChatTemplate, rendered_here
from proxy.backends.tokens.control_text import LearntControls, cut, marked
from proxy.backends.tokens.logprobs import PieceLogprobs
from proxy.backends.tokens.wire_values import error_in, text_of, whole_text
from proxy.backends.transport.http import DONE, UpstreamClient
from proxy.backends.worker_slots import ALL_SLOTS, WorkerSlots
from proxy.core.scoring import entropy, oracle_value
from proxy.core.types import Scoring, StepScore
from proxy.errors import ConfigError, RequestError

T = TypeVar("T")
# Added to the logit of the one allowed token; log-probabilities are computed before the addition.
_FORCE = 1000
# How many candidates to request to find a token that cannot be forced: first those that hold most
# of the probability, then every token of any vocabulary.
_SEARCH_DEPTHS = (1_000, 1_000_000)


@dataclass(frozen=True, slots=True)
class _Forced:
    """The answer to one forced token: its log-probability, its bytes (None if they did not come),
    and the most probable candidates' log-probabilities.
    """

    logprob: float
    spelt: bytes | None
    top: list[float]
    num_cached_tokens: int


class LlamaCpp:
    """Student or teacher on a llama.cpp server."""

    scoring: Scoring = "forced_decode"
    recomputes = False

    def __init__(
        self,
        client: UpstreamClient,
        chat_template: ChatTemplate | None,
        num_slots: int,
        follower: int,
        worker_slots: WorkerSlots = ALL_SLOTS,
    ) -> None:
        self._client = client
        self._template = chat_template
        self._slots = ReplicaSlots(client, num_slots, worker_slots)
        self.num_slots = len(worker_slots.of(range(num_slots)))
        """The requests that the server answers at once for this process."""
        self.template_kwargs: Mapping[str, Any] = {}
        """Variables of the chat template, which a question may replace."""
        self._follower = follower
        self._controls = LearntControls(families=True)
        self._user_defined = LearntControls(families=False)
        """The control tokens that the server finds even in text that it is not to parse."""

    @classmethod
    async def connect(
        cls,
        client: UpstreamClient,
        chat_template: ChatTemplate | None,
        worker_slots: WorkerSlots = ALL_SLOTS,
    ) -> "LlamaCpp":
        """Ask the server for its slots, and learn how its tokenizer cuts text.

        Raises `ConfigError` if it has fewer slots than processes that share it.
        """
        props = await client.get("/props")
        body = {"content": as_in_running_text("\n"), "add_special": False}
        reply = await client.post("/tokenize", body, Call("connect"))
        with client.expecting("/props or /tokenize, if this is llama.cpp's own server,"):
            num_slots, follower = int(props["total_slots"]), int(reply["tokens"][-1])
        if num_slots < worker_slots.num_workers:
            message = (
                f"its server has {num_slots} slots and {worker_slots.num_workers} workers need one "
                "each: start it with more (--parallel), or use fewer workers"
            )
            raise ConfigError(f"upstreams.{client.upstream}: {message}")
        return cls(client, chat_template, num_slots, follower, worker_slots)

    async def check(self) -> None:
        await self._client.get("/health")

    async def limits(self) -> ModelLimits:
        return await slot_limits(self._client)

    async def learn_vocabulary(self) -> Vocabulary:
        """Ask how many tokens the model has. The server itself refuses others, and it takes any
        number of candidates.
        """
        return Vocabulary(self._client.upstream, await listed_vocabulary(self._client))

    async def render(self, question: Question, call: Call) -> Segment:
        question = question.under(self.template_kwargs)
        if words := self._controls.unknown_in(question):
            found = await _all(self._parsed(word, call, add_special=False) for word in words)
            self._controls.learn(words, found)
        question, mark = marked(question, self._controls.starts)
        text = await rendered_here(question, self._template)
        if text is None:
            body: dict[str, Any] = {"messages": question.wire_messages()}
            if question.template_kwargs:
                body["chat_template_kwargs"] = question.template_kwargs
            reply = await self._client.post("/apply-template", body, call)
            with self._client.expecting("/apply-template"):
                text = whole_text(reply["prompt"])
        if not mark:
            return Segment(text, await self._parsed(text, call, add_special=True))
        parts = text.split(mark)
        ids = await _all(
            self._parsed(part, call, add_special=not index) for index, part in enumerate(parts)
        )
        return Segment("".join(parts), tuple(chain.from_iterable(ids)))

    async def prompt_text(self, rendered: Segment, call: Call) -> str:
        if rendered.text:
            return rendered.text
        # Asked for the text of what is no token, the server fails with a 500.
        models = await self._client.get("/v1/models")
        with self._client.expecting("/v1/models"):
            num_tokens = int(models["data"][0]["meta"]["n_vocab"])
        if (highest := max(rendered.token_ids)) >= num_tokens:
            message = (
                f"upstream '{self._client.upstream}' has {num_tokens} tokens, none is {highest}"
            )
            raise RequestError(message, param="prompt")
        reply = await self._client.post("/detokenize", {"tokens": rendered.token_ids}, call)
        with self._client.expecting("/detokenize"):
            return whole_text(reply["content"])

    async def markup(self, text: str, call: Call) -> Segment:
        return Segment(text, await self._parsed(text, call, add_special=False))

    async def _parsed(self, text: str, call: Call, *, add_special: bool) -> tuple[int, ...]:
        body = {"content": text, "add_special": add_special, "parse_special": True}
        reply = await self._client.post("/tokenize", body, call)
        with self._client.expecting("/tokenize"):
            return tuple(map(int, reply["tokens"]))

    async def encode(self, texts: Sequence[str], call: Call) -> list[Segment]:
        return [found for (found,) in await self.encode_running([[text] for text in texts], call)]

    async def encode_running(
        self, texts: Sequence[Sequence[str]], call: Call
    ) -> list[list[Segment]]:
        joined = ["".join(parts) for parts in texts]
        if words := self._user_defined.unknown(joined):
            found = await _all(self._as_text(word, call) for word in words)
            self._user_defined.learn(words, found)
        return await _all(self._cut(parts, call) for parts in texts)

    async def _cut(self, parts: Sequence[str], call: Call) -> list[Segment]:
        """Tokenise a text in parts, and give every part the tokens that end in it."""
        text = "".join(parts)
        whole = as_in_running_text(text)
        rows: list[dict[str, Any]] = []
        for apart in cut(whole, self._user_defined.starts(whole)) or [whole]:
            rows += await self._as_text(apart, call)
        with self._client.expecting("/tokenize"):
            ids = without_follower(text, [int(row["id"]) for row in rows], self._follower)
            spelt = [_piece_bytes(row["piece"]) for row in rows[: len(ids)]]
            if b"".join(spelt) != text.encode():
                message = (
                    f"its tokens of {text[-40:]!r} spell another text; set the upstream's "
                    "`tokenizer` to the model's Hugging Face name or folder"
                )
                raise ValueError(message)
            return in_parts(parts, ids, Alignment.of_lengths(map(len, spelt)))

    async def _as_text(self, text: str, call: Call) -> list[dict[str, Any]]:
        """The tokens of a text in which none of the model's own control tokens is found."""
        body = {"content": text, "add_special": False, "parse_special": False, "with_pieces": True}
        reply = await self._client.post("/tokenize", body, call)
        with self._client.expecting("/tokenize"):
            return list(reply["tokens"])

    async def write(
        self, context: Context, sampling: Sampling, max_tokens: int, call: Call
    ) -> AsyncGenerator[Draft]:
        body: dict[str, Any] = {
            "prompt": context.token_ids,
            "n_predict": max_tokens,
            "stream": True,
            "cache_prompt": True,
            **llamacpp_sampling(sampling),
            "stop": list(sampling.stop),
        }
        if sampling.has_penalties:  # which count over the whole text, as everywhere else
            body["repeat_last_n"] = len(context.token_ids) + max_tokens
        if sampling.seed is not None:
            body["seed"] = sampling.seed_31_bits
        if sampling.logprobs:
            body["n_probs"] = 1
        last: Draft | None = None
        reading = LlamaCppStream(self._client.upstream, PieceLogprobs(sampling.logprobs))
        async with self._slots.lease(call) as slot:
            body["id_slot"] = slot
            async with self._client.stream("/completion", body, call) as events:
                del body, context  # a stream may be open for long
                # Read to the very end, past the last draft, so that the connection can be reused.
                async for payload in events:
                    if payload == DONE:
                        continue
                    draft = self._draft(payload, reading)
                    if draft is None:
                        continue
                    if last is not None:
                        self._client.expect_no_text_after(last.end, "".join(draft.pieces))
                    if draft.end is None:
                        yield draft
                    else:
                        last = draft
                if last is None:
                    raise self._client.broken_off()
        yield last

    def _draft(self, payload: bytes, reading: LlamaCppStream) -> Draft | None:
        with self._client.expecting("a stream event"):
            row = orjson.loads(payload)
            if error := error_in(row):
                raise self._client.stream_failure(error)
            return reading.draft(row)

    async def decode(self, context: Context, max_tokens: int, call: Call) -> Decoded:
        async with self._slots.lease(call) as slot:
            body = {
                "prompt": context.token_ids,
                "n_predict": max_tokens,
                "n_probs": 1,
                **llamacpp_sampling(GREEDY),
                "return_tokens": True,
                "cache_prompt": True,
                "id_slot": slot,
            }
            reply = await self._client.post("/completion", body, call)
        with self._client.expecting("the written answer"):
            rows: list[tuple[str, int, float | None]] = []
            # Stop at a token that ends inside a character: it comes without its probability.
            for token, row in zip(reply["tokens"], reply["completion_probabilities"], strict=False):
                if row["id"] != token:
                    break
                rows.append((text_of(row["token"]), int(token), finite_or_nan(row["logprob"])))
            return decoded(text_of(reply["content"]), rows)

    async def score(
        self, context: Context, num_new: int, top_k: int, call: Call, *, entropy_known: bool
    ) -> Scores:
        # The entropy comes free with a step's first token, so `entropy_known` saves nothing here.
        del entropy_known
        ids = context.token_ids
        scores: list[StepScore] = []
        num_cached: int | None = None
        async with self._slots.lease(call) as slot:
            for tokens in context.ranges(num_new):
                forced = [
                    await self._force(ids, i, top_k if i == tokens.start else 1, slot, call)
                    for i in tokens
                ]
                if num_cached is None:
                    num_cached = forced[0].num_cached_tokens
                with self._client.expecting("a forced token"):
                    value = oracle_value([token.logprob for token in forced])
                    scores.append(StepScore(value, entropy(forced[0].top, top_k), len(forced)))
        return Scores(tuple(scores), None, len(ids) - context.bounds[-num_new - 1], num_cached)

    async def token_logprobs(self, context: Context, call: Call) -> tuple[ScoredToken, ...]:
        ids, start, text = context.token_ids, context.bounds[-2], context.texts[-1]
        async with self._slots.lease(call) as slot:
            forced = [await self._force(ids, i, 1, slot, call) for i in range(start, len(ids))]
        with self._client.expecting("a forced token"):
            # The ids may be those of `tokenizer`, which cuts otherwise than the server's own.
            spelt = [_given_bytes(token) for token in forced]
            if b"".join(spelt) != text.encode():
                raise ValueError(f"the tokens of {text[-40:]!r} spell another text")
        ends = accumulate(map(len, spelt))
        return tuple(
            ScoredToken(end, token.logprob) for end, token in zip(ends, forced, strict=True)
        )

    async def _force(
        self, ids: TokenIds, position: int, num_top: int, slot: int, call: Call
    ) -> _Forced:
        """Let the server decode exactly the token at `position` after the ids before it."""
        target = ids[position]
        reply = await self._decode_one(ids.first(position), target, num_top, slot, call)
        with self._client.expecting("a forced token"):
            if "completion_probabilities" in reply:
                entry = reply["completion_probabilities"][0]
                if entry["id"] != target:
                    raise ValueError(f"token {target} was forced, {entry['id']} came")
                return _forced(reply, entry, num_top)
        # A token that ends inside a character comes without its probability. Another token is
        # therefore forced, and the target is looked up among the candidates.
        for depth in _SEARCH_DEPTHS:
            reply = await self._decode_one(ids.first(position), self._follower, depth, slot, call)
            with self._client.expecting("a forced token"):
                for candidate in reply["completion_probabilities"][0]["top_logprobs"]:
                    if candidate["id"] == target:
                        return _forced(reply, candidate, num_top)
        with self._client.expecting("a forced token"):
            raise ValueError(f"token {target} is not in the vocabulary")

    async def _decode_one(
        self, prompt: TokenIds, token: int, num_top: int, slot: int, call: Call
    ) -> Any:  # noqa: ANN401
        body = {
            "prompt": prompt,
            "n_predict": 1,
            "n_probs": num_top,
            **llamacpp_sampling(GREEDY),
            "logit_bias": [[token, _FORCE]],
            "cache_prompt": True,
            "id_slot": slot,
        }
        return await self._client.post("/completion", body, call)


async def _all(calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Return the results of calls that run at the same time."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(call) for call in calls]
    return [task.result() for task in tasks]


def _forced(reply: dict[str, Any], entry: dict[str, Any], num_top: int) -> _Forced:
    top = [row["logprob"] for row in reply["completion_probabilities"][0]["top_logprobs"]]
    if len(top) < num_top:
        raise ValueError(f"{num_top} candidates were asked for, {len(top)} came")
    cached = int(reply["timings"]["cache_n"])
    spelt = entry.get("bytes")
    return _Forced(
        finite_or_nan(entry["logprob"]),
        None if spelt is None else bytes(spelt),
        [finite_or_nan(x) for x in top[:num_top]],
        cached,
    )


def _given_bytes(token: _Forced) -> bytes:
    if token.spelt is None:
        raise ValueError("it came without its bytes")
    return token.spelt


def _piece_bytes(piece: str | list[int]) -> bytes:
    """A token's bytes; llama.cpp writes a text that is not valid UTF-8 as a list of bytes."""
    return piece.encode() if isinstance(piece, str) else bytes(piece)
