"""vLLM's OpenAI-compatible server: `/v1/completions` with token-id prompts and `prompt_logprobs`.

API: https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html; the payloads were
recorded from vLLM 0.32.0 (tests/golden). vLLM ignores body fields that it does not know, so what
was asked for is checked in every answer.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from itertools import pairwise
from typing import Any

import orjson

from proxy.backends.alignment import FOLLOWED_BY, as_in_running_text, without_follower
from proxy.backends.base import Call, Context, Draft, Question, Sampling, Scores, Segment
from proxy.backends.http import UpstreamClient
from proxy.backends.template import ChatTemplate
from proxy.core.scoring import entropy, oracle_value
from proxy.core.types import FinishReason, StepScore
from proxy.errors import UpstreamFailed, UpstreamMalformed, UpstreamRefused, UpstreamUnreachable

_END_REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length"}
# What SentencePiece-like tokenizers write for a space.
_METASPACE = "\u2581"


class Vllm:
    """Student or teacher on a vLLM server. One scoring call gives V, H and the next state's H."""

    scoring = "prompt_logprobs"

    def __init__(
        self, client: UpstreamClient, model: str, chat_template: ChatTemplate | None, follower: int
    ) -> None:
        self._client = client
        self._model = model
        self._template = chat_template
        self._follower = follower

    @classmethod
    async def connect(
        cls, client: UpstreamClient, model: str, chat_template: ChatTemplate | None
    ) -> "Vllm":
        """Ask the server whether it has the model, and learn how its tokenizer cuts."""
        call = Call("connect")
        body = {
            "model": model,
            "prompt": as_in_running_text("\n"),
            "add_special_tokens": False,
            "return_token_strs": True,
        }
        reply = await client.post("/tokenize", body, call)
        alone = await client.post("/tokenize", {**body, "prompt": FOLLOWED_BY}, call)
        if str(alone["token_strs"][0]).startswith(_METASPACE):
            message = (
                "its tokenizer puts a space before every text that it is given, so steps cannot "
                "be tokenised one by one through this server"
            )
            raise UpstreamRefused(client.upstream, message)
        return cls(client, model, chat_template, int(reply["tokens"][-1]))

    async def check(self) -> None:
        reply = await self._client.get("/v1/models")
        served = [entry["id"] for entry in reply["data"]]
        if self._model not in served:
            message = f"it serves {', '.join(served)}, not the configured model '{self._model}'"
            raise UpstreamRefused(self._client.upstream, message)

    async def render(self, question: Question, call: Call) -> Segment:
        if question.prompt is not None:
            text = question.prompt
        elif self._template is not None:
            text = self._template.render(question.messages)
        else:
            messages = [{"role": m.role, "content": m.content} for m in question.messages]
            ids = await self._tokenize({"messages": messages, "add_generation_prompt": True}, call)
            return Segment("", ids)
        ids = await self._tokenize({"prompt": text, "add_special_tokens": True}, call)
        return Segment(text, ids)

    async def encode(self, texts: Sequence[str], call: Call) -> list[Segment]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._encode(text, call)) for text in texts]
        return [task.result() for task in tasks]

    async def _encode(self, text: str, call: Call) -> Segment:
        body = {"prompt": as_in_running_text(text), "add_special_tokens": False}
        ids = without_follower(text, list(await self._tokenize(body, call)), self._follower)
        if ids is None:
            message = f"its tokens of {text[-40:]!r} do not end where that text ends"
            raise UpstreamMalformed(self._client.upstream, message)
        return Segment(text, ids)

    async def _tokenize(self, body: dict[str, Any], call: Call) -> tuple[int, ...]:
        reply = await self._client.post("/tokenize", {"model": self._model, **body}, call)
        tokens = reply.get("tokens") if isinstance(reply, dict) else None
        if not isinstance(tokens, list):
            raise UpstreamMalformed(self._client.upstream, "/tokenize gave no tokens")
        return tuple(tokens)

    async def write(
        self, context: Context, sampling: Sampling, max_tokens: int, call: Call
    ) -> AsyncGenerator[Draft]:
        body = {
            **self._completion(context, sampling.temperature, sampling.top_p),
            "max_tokens": max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_token_ids": True,
            "logprobs": 0,  # the tokens one by one, even where a chunk holds several
            "stop": list(sampling.stop),
        }
        if sampling.seed is not None:
            body["seed"] = sampling.seed
        end: FinishReason | None = None
        async with self._client.stream("/v1/completions", body, call) as events:
            async for payload in events:
                if payload == b"[DONE]":
                    break
                row = self._event(payload)
                if not row["choices"]:
                    yield Draft((), end, _cached_tokens(row))
                    return
                choice = row["choices"][0]
                yield Draft(self._pieces(choice))
                if choice["finish_reason"] is not None:
                    end = self._end(choice["finish_reason"])
        raise UpstreamUnreachable(self._client.upstream, "its stream broke off before the end")

    def _completion(self, context: Context, temperature: float, top_p: float) -> dict[str, Any]:
        """The fields of every completion. An omitted sampling field would be filled from the
        model's generation_config.json, so all of them are said.
        """
        return {
            "model": self._model,
            "prompt": context.token_ids,
            "temperature": temperature,
            "top_p": top_p,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
        }

    def _event(self, payload: bytes) -> dict[str, Any]:
        try:
            row: dict[str, Any] = orjson.loads(payload)
        except orjson.JSONDecodeError as error:
            message = f"a stream event is no JSON: {payload[:200]!r}"
            raise UpstreamMalformed(self._client.upstream, message) from error
        if "error" in row:
            raise UpstreamFailed(self._client.upstream, f"the stream failed: {row['error']}")
        return row

    def _pieces(self, choice: dict[str, Any]) -> tuple[str, ...]:
        """The chunk's text, token by token.

        The token strings spell the text except where text is held back (a stop string in the
        making) and for special tokens, which have a string but no text; there all of the chunk's
        text comes with its last token.
        """
        text: str = choice["text"]
        ids, logprobs = choice.get("token_ids"), choice.get("logprobs")
        if ids is None or logprobs is None:
            message = "return_token_ids and logprobs were asked for, but did not come"
            raise UpstreamMalformed(self._client.upstream, message)
        tokens = tuple(logprobs["tokens"])
        if choice["finish_reason"] == "stop" and choice["stop_reason"] is None and tokens:
            tokens = tokens[:-1]  # the end token is counted, but it is no text
        if "".join(tokens) == text:
            return tokens
        return ("",) * (len(tokens) - 1) + (text,)

    def _end(self, finish_reason: str) -> FinishReason:
        if finish_reason not in _END_REASONS:
            message = f"unknown finish_reason {finish_reason!r}"
            raise UpstreamMalformed(self._client.upstream, message)
        return _END_REASONS[finish_reason]

    async def score(
        self, context: Context, num_new: int, top_k: int, call: Call, *, entropy_known: bool
    ) -> Scores:
        # A top-k for every prompt position is large (20 x 8k tokens are some 10 MB): ask for it
        # only where the entropy of a new step can come from nowhere else.
        values_only = entropy_known and num_new == 1
        body = {
            **self._completion(context, temperature=0.0, top_p=1.0),
            "prompt_logprobs": 0 if values_only else top_k,
            "logprobs": top_k,
            "max_tokens": 1,
            # Else candidates that decode to the same text fall together.
            "return_tokens_as_token_ids": True,
        }
        reply = await self._client.post("/v1/completions", body, call)
        try:
            choice = reply["choices"][0]
            rows: list[dict[str, dict[str, Any]] | None] = choice["prompt_logprobs"]
            next_top = list(choice["logprobs"]["top_logprobs"][0].values())
            return Scores(
                steps=_step_scores(context, num_new, rows, None if values_only else top_k),
                next_entropy=entropy(_complete(next_top, top_k), top_k),
                num_tokens=len(context.token_ids) - context.bounds[-num_new - 1],
                num_cached_tokens=_cached_tokens(reply),
            )
        except (KeyError, IndexError, TypeError, ValueError) as error:
            message = f"the scoring answer is not what was asked for: {error!r}"
            raise UpstreamMalformed(self._client.upstream, message) from error


def _step_scores(
    context: Context,
    num_new: int,
    rows: list[dict[str, dict[str, Any]] | None],
    top_k: int | None,
) -> tuple[StepScore, ...]:
    """V, and with `top_k` H, of the last `num_new` steps; `rows` is `prompt_logprobs`."""
    ids, bounds = context.token_ids, context.bounds[-num_new - 1 :]
    if len(rows) != len(ids):
        raise ValueError(f"{len(ids)} prompt tokens, but {len(rows)} prompt_logprobs")
    scores: list[StepScore] = []
    for start, end in pairwise(bounds):
        value = oracle_value([_of_token(rows[i], ids[i]) for i in range(start, end)])
        known = None if top_k is None else entropy(_top_of(rows[start], top_k), top_k)
        scores.append(StepScore(value, known, end - start))
    return tuple(scores)


def _of_token(row: dict[str, dict[str, Any]] | None, token_id: int) -> float | None:
    """The log-probability of the prompt's own token; None, which core refuses, where missing."""
    entry = None if row is None else row.get(str(token_id))
    return None if entry is None else entry["logprob"]


def _top_of(row: dict[str, dict[str, Any]] | None, top_k: int) -> list[float]:
    """The top-k of a prompt position, without the prompt's own token where that ranks below."""
    top = [] if row is None else [e["logprob"] for e in row.values() if e["rank"] <= top_k]
    return _complete(top, top_k)


def _complete(top: list[float], top_k: int) -> list[float]:
    if len(top) < top_k:
        raise ValueError(f"{top_k} top log-probabilities were asked for, {len(top)} came")
    return top


def _cached_tokens(reply: dict[str, Any]) -> int | None:
    """Prompt tokens from the cache; vLLM tells with `--enable-prompt-tokens-details` only."""
    details = (reply.get("usage") or {}).get("prompt_tokens_details") or {}
    cached = details.get("cached_tokens")
    return None if cached is None else int(cached)
