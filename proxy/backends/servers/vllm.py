"""Speaks to vLLM's OpenAI-style server: `/v1/completions` with token ids and `prompt_logprobs`.

API: https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html; the payloads were
recorded from vLLM 0.32.0 (tests/golden). vLLM ignores body fields that it does not know, so every
answer is checked for what was requested.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from itertools import chain
from operator import itemgetter
from types import MappingProxyType
from typing import Any, NamedTuple

import orjson

from proxy.backends.base import (
    GREEDY,
    Call,
    Context,
    Decoded,
    Draft,
    Sampling,
    ScoredToken,
    Scores,
)
from proxy.backends.servers.model_list import require_model
from proxy.backends.servers.sampling_fields import vllm_sampling
from proxy.backends.servers.server_reader import Cuts, ServerReader
from proxy.backends.token_ids import TokenIds
from proxy.backends.tokens.alignment import (
    FOLLOWED_BY,
    as_in_running_text,
    decoded,
    scored_tokens,
)
from proxy.backends.tokens.logprobs import PieceLogprobs, all_finite, complete, finite
from proxy.backends.tokens.openai_usage import cached_tokens
from proxy.backends.tokens.spelling import Spelling, Token
from proxy.backends.tokens.thin_json import RowLayout
from proxy.backends.tokens.wire_values import (
    end_of,
    error_in,
    is_failure,
    text_of,
    whole_text,
)
from proxy.backends.transport.http import DONE, UpstreamClient
from proxy.core.scoring import entropy, oracle_value
from proxy.core.types import FinishReason, Scoring, StepScore

# SentencePiece-like tokenizers write this for a space.
_METASPACE = "\u2581"
# vLLM writes this number for -inf, which JSON does not have.
LOWEST = -9999.0
# With more tokens than this per entropy, each entropy is requested with a prompt of its own. On a
# CPU, whose blocks are large, that takes as long as the candidates of 300 tokens; a GPU is faster.
ROWS_A_PROMPT = 100
# The server reads this many prompt token ids in some 10 ms, in the one process that also sends the
# streams of all other requests.
_MAX_IDS = 100_000
# Every row holds at least the prompt's own token, whose key is a number.
_ROWS = RowLayout(b"prompt_logprobs", b'{"', b"}}")


class _VllmEvent(NamedTuple):
    """One event of a stream; `num_cached_tokens` comes with the usage, in the last event.

    Not a dataclass, as `Draft`.
    """

    text: str
    ids: Sequence[Any]
    strings: Sequence[Any]
    logprobs: tuple[float | None, ...]
    end: FinishReason | None
    is_usage: bool
    num_cached_tokens: int | None


class Vllm(ServerReader):
    """Student or teacher on a vLLM server. One scoring call gives V, H and the next state's H."""

    scoring: Scoring = "prompt_logprobs"
    recomputes = True

    _route = "/tokenize"
    _rendering = MappingProxyType({"add_generation_prompt": True})

    @classmethod
    async def _cuts(cls, client: UpstreamClient, model: str) -> Cuts:
        call = Call("connect")
        body = {
            "model": model,
            "prompt": as_in_running_text("\n"),
            "add_special_tokens": False,
            "return_token_strs": True,
        }
        reply = await client.post(cls._route, body, call)
        alone = await client.post(cls._route, {**body, "prompt": FOLLOWED_BY}, call)
        with client.expecting(cls._route):
            first = text_of(alone["token_strs"][0])
            return Cuts(int(reply["tokens"][-1]), adds_space=first.startswith(_METASPACE))

    async def check(self) -> None:
        await require_model(self._client, self._model)

    async def _detokenized(self, token_ids: Sequence[int], call: Call) -> str:
        body = {"model": self._model, "tokens": list(token_ids)}
        reply = await self._client.post("/detokenize", body, call)
        with self._client.expecting("/detokenize"):
            return whole_text(reply["prompt"])

    async def _ids_of(self, texts: Sequence[str], call: Call) -> list[tuple[int, ...]]:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._ids({"prompt": text, "add_special_tokens": False}, call))
                for text in texts
            ]
        return [task.result() for task in tasks]

    async def _spelt(self, texts: Sequence[str], call: Call) -> list[list[Token]]:
        body = {"model": self._model, "add_special_tokens": False, "return_token_strs": True}
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._client.post(self._route, {**body, "prompt": text}, call))
                for text in texts
            ]
        replies = [task.result() for task in tasks]
        with self._client.expecting(self._route):
            return [
                [
                    Token.of(token_id, string)
                    for token_id, string in zip(reply["tokens"], reply["token_strs"], strict=True)
                ]
                for reply in replies
            ]

    async def write(
        self, context: Context, sampling: Sampling, max_tokens: int, call: Call
    ) -> AsyncGenerator[Draft]:
        body = {
            **self._completion(context.token_ids, sampling),
            "max_tokens": max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_token_ids": True,
            "logprobs": 0,  # lists the tokens one by one, even if a chunk holds several
            "stop": list(sampling.stop),
        }
        if sampling.seed is not None:
            body["seed"] = sampling.seed_63_bits
        if sampling.special_tokens:
            body |= {"skip_special_tokens": False, "spaces_between_special_tokens": False}
        end: FinishReason | None = None
        num_cached: int | None = None
        has_usage = False
        spelling, logprobs = Spelling(), PieceLogprobs(sampling.logprobs)
        async with self._client.stream("/v1/completions", body, call) as events:
            del body, context  # a stream may be open for long
            # Read to the very end, so that the connection can be reused.
            async for payload in events:
                if payload == DONE:  # the server itself says that all is there
                    has_usage = True
                    continue
                event = self._event(payload, logprobs=sampling.logprobs)
                has_usage |= event.is_usage
                num_cached = event.num_cached_tokens
                self._client.expect_no_text_after(end, event.text or event.ids)
                end = event.end or end
                with self._client.expecting("a stream event"):
                    spelt = spelling.feed_columns(event.text, event.ids, event.strings)
                logprobs.add(event.logprobs)
                if spelt.pieces:
                    piece_logprobs = logprobs.take(len(spelt.pieces))
                    yield Draft(spelt.pieces, token_ids=spelt.token_ids, logprobs=piece_logprobs)
            if end is None or not has_usage:
                raise self._client.broken_off()
        rest = spelling.rest()
        yield Draft(rest, end, num_cached, logprobs=logprobs.take(len(rest)))

    def _completion(self, prompt: TokenIds | list[TokenIds], sampling: Sampling) -> dict[str, Any]:
        """The fields of every completion."""
        return {"model": self._model, "prompt": prompt, **vllm_sampling(sampling)}

    def _event(self, payload: bytes, *, logprobs: bool) -> _VllmEvent:
        with self._client.expecting("a stream event"):
            row = orjson.loads(payload)
            if error := error_in(row):
                raise self._client.stream_failure(error)
            choices = row.get("choices")
            if not choices:
                has_usage = bool(row.get("usage"))
                return _VllmEvent("", (), (), (), None, has_usage, cached_tokens(row))
            choice = choices[0]
            reason = choice.get("finish_reason")
            if is_failure(reason):
                raise self._client.stream_failure(f"finish_reason is {reason}")
            end = end_of(reason, self._client.upstream)
            text = text_of(choice.get("text"))
            ids, strings = _tokens(choice) if text or choice.get("logprobs") else ((), ())
            if ids and choice.get("text") is None:
                raise ValueError(f"{len(ids)} tokens came without their text")
            of_tokens = _token_logprobs(choice, len(ids)) if logprobs and ids else ()
            return _VllmEvent(
                text, ids, strings, of_tokens, end, is_usage=False, num_cached_tokens=None
            )

    async def decode(self, context: Context, max_tokens: int, call: Call) -> Decoded:
        body = {
            **self._completion(context.token_ids, GREEDY),
            "max_tokens": max_tokens,
            "logprobs": 0,
            "return_token_ids": True,
        }
        reply = await self._client.post("/v1/completions", body, call)
        with self._client.expecting("the written answer"):
            choice = reply["choices"][0]
            rows = zip(
                map(text_of, choice["logprobs"]["tokens"]),
                map(int, choice["token_ids"]),
                (finite(x, LOWEST) for x in choice["logprobs"]["token_logprobs"]),
                strict=True,
            )
            return decoded(text_of(choice["text"]), list(rows))

    async def score(
        self, context: Context, num_new: int, top_k: int, call: Call, *, entropy_known: bool
    ) -> Scores:
        ids = context.token_ids
        starts = [tokens.start for tokens in context.ranges(num_new)]
        unknown = starts[entropy_known:]
        # vLLM gives a top-k for every prompt position or for none. Many are large (20 x 8k tokens
        # are some 10 MB) and slow (0.12 ms each, in the one process that serves all requests).
        asks_apart = len(ids) > ROWS_A_PROMPT * len(unknown)
        body = {
            **self._next_token(ids, top_k),
            "prompt_logprobs": 0 if asks_apart else top_k,
        }
        num_rows = len(ids)
        new = range(starts[0], num_rows)
        # vLLM writes the prompt's own token first; candidates matter only where a step begins.
        with_top = set() if asks_apart else set(starts)
        pairs = zip(new, ids[starts[0] :], strict=True)
        own = {i: b'%d":{"logprob":' % token_id for i, token_id in pairs if i not in with_top}
        reply = await self._client.post(
            "/v1/completions",
            body,
            call,
            loads=lambda answer: _ROWS.loads(answer, num_rows, new, own),
        )
        with self._client.expecting("the scoring answer"):
            choice = reply["choices"][0]
            rows: list[dict[str, dict[str, Any]] | None] = choice["prompt_logprobs"]
            scores = Scores(
                steps=_step_scores(context, num_new, rows, None if asks_apart else top_k),
                next_entropy=None if context.looks_ahead else _next_entropy(choice, top_k),
                num_tokens=num_rows - starts[0],
                num_cached_tokens=cached_tokens(reply),
            )
        if not (asks_apart and unknown):
            return scores
        # The call above left the context in the prefix cache: each entropy costs at most a block.
        known = chain([None] * entropy_known, await self.entropies(ids, unknown, top_k, call))
        steps = tuple(replace(s, entropy=h) for s, h in zip(scores.steps, known, strict=True))
        return replace(scores, steps=steps)

    async def entropies(
        self, ids: TokenIds, places: Sequence[int], top_k: int, call: Call
    ) -> list[float]:
        """Return H of the states before these places in `ids`, from the prefix cache."""
        size = max(1, _MAX_IDS // len(ids))
        parts = [places[first : first + size] for first in range(0, len(places), size)]
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._entropies([ids.first(n) for n in part], top_k, call))
                for part in parts
            ]
        return [entropy for task in tasks for entropy in task.result()]

    async def _entropies(self, contexts: list[TokenIds], top_k: int, call: Call) -> list[float]:
        """Return H of the state after each of the contexts, with one call."""
        reply = await self._client.post("/v1/completions", self._next_token(contexts, top_k), call)
        with self._client.expecting("the next tokens' candidates"):
            choices = sorted(reply["choices"], key=itemgetter("index"))
            if [choice["index"] for choice in choices] != list(range(len(contexts))):
                raise ValueError(f"{len(contexts)} prompts, but {len(choices)} choices")
            return [_next_entropy(choice, top_k) for choice in choices]

    async def logprob_after(self, ids: TokenIds, token_id: int, call: Call) -> float:
        """Return the log-probability of a token after a prompt, from the prefix cache.

        Only for Model Runner V2: on V1 it garbles the candidates of other requests. The lowest
        number that vLLM writes is refused, because it stands for -inf and for NaN alike.
        """
        body = {**self._next_token(ids, 1), "logprob_token_ids": [token_id]}
        reply = await self._client.post("/v1/completions", body, call)
        with self._client.expecting("the token's log-probability"):
            (top,) = reply["choices"][0]["logprobs"]["top_logprobs"]
            logprob = float(top[f"token_id:{token_id}"])
            if logprob <= LOWEST:
                raise ValueError(f"{logprob} may stand for NaN")
            return logprob

    def _next_token(self, prompt: TokenIds | list[TokenIds], top_k: int) -> dict[str, Any]:
        """Ask for one token and its candidates after the prompt, or after each of several."""
        return {
            **self._completion(prompt, GREEDY),
            "logprobs": top_k,
            "max_tokens": 1,
            # Otherwise candidates that decode to the same text are merged.
            "return_tokens_as_token_ids": True,
        }

    async def token_logprobs(self, context: Context, call: Call) -> tuple[ScoredToken, ...]:
        body = {
            **self._completion(context.token_ids, GREEDY),
            "prompt_logprobs": 0,
            "max_tokens": 1,
        }
        reply = await self._client.post("/v1/completions", body, call)
        with self._client.expecting("the scoring answer"):
            rows, ids = reply["choices"][0]["prompt_logprobs"], context.token_ids
            if len(rows) != len(ids):
                raise ValueError(f"{len(ids)} prompt tokens, but {len(rows)} prompt_logprobs")
            own = list(zip(rows, ids, strict=True))[context.bounds[-2] :]
            return scored_tokens(
                [_decoded_token(row, token_id) for row, token_id in own],
                [of_token(row, token_id) for row, token_id in own],
                context.texts[-1],
            )


def _decoded_token(row: dict[str, dict[str, Any]] | None, token_id: int) -> str:
    if row is None or str(token_id) not in row:
        raise ValueError(f"the prompt_logprobs lack token {token_id}")
    return text_of(row[str(token_id)]["decoded_token"])


def _tokens(choice: dict[str, Any]) -> tuple[Sequence[Any], Sequence[Any]]:
    """The ids and the strings of the chunk's tokens."""
    ids, strings = choice["token_ids"], choice["logprobs"]["tokens"]
    if len(ids) != len(strings):
        raise ValueError(f"{len(ids)} token_ids, but {len(strings)} tokens")
    # If no stop string ended the text, an end token did: it is counted, but has no text.
    if choice.get("finish_reason") == "stop" and not isinstance(choice.get("stop_reason"), str):
        return ids[:-1], strings[:-1]
    return ids, strings


def _token_logprobs(choice: dict[str, Any], num_tokens: int) -> tuple[float | None, ...]:
    found = choice["logprobs"]["token_logprobs"]
    if len(found) < num_tokens:
        raise ValueError(f"{num_tokens} tokens, but {len(found)} token_logprobs")
    return tuple(all_finite(found[:num_tokens], LOWEST))


def _step_scores(
    context: Context,
    num_new: int,
    rows: list[dict[str, dict[str, Any]] | None],
    top_k: int | None,
) -> tuple[StepScore, ...]:
    """V, and with `top_k` H, of the last `num_new` steps; `rows` is `prompt_logprobs`."""
    ids = context.token_ids
    if len(rows) != len(ids):
        raise ValueError(f"{len(ids)} prompt tokens, but {len(rows)} prompt_logprobs")
    scores: list[StepScore] = []
    for tokens in context.ranges(num_new):
        own = zip(rows[tokens.start : tokens.stop], ids[tokens.start : tokens.stop], strict=True)
        value = oracle_value([of_token(row, token_id) for row, token_id in own])
        known = None if top_k is None else entropy(top_of(rows[tokens.start], top_k), top_k)
        scores.append(StepScore(value, known, len(tokens)))
    return tuple(scores)


def _next_entropy(choice: dict[str, Any], top_k: int) -> float:
    """H of the state after a prompt, from the candidates of the one token written."""
    candidates = choice["logprobs"]["top_logprobs"][0].values()
    return entropy(complete(all_finite(candidates, LOWEST), top_k), top_k)


def of_token(row: dict[str, dict[str, Any]] | None, token_id: int) -> float | None:
    """The log-probability of the prompt's own token, or None, which core refuses, if missing."""
    entry = None if row is None else row.get(str(token_id))
    return None if entry is None else finite(entry["logprob"], LOWEST)


def top_of(row: dict[str, dict[str, Any]] | None, top_k: int) -> list[float | None]:
    """The top-k of a prompt position, without the prompt's own token if it ranks below them."""
    entries = [] if row is None else row.values()
    ranked = [entry["logprob"] for entry in entries if entry["rank"] <= top_k]
    return complete(all_finite(ranked, LOWEST), top_k)
