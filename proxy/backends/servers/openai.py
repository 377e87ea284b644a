"""Speaks to any server with an OpenAI-style `/v1/completions` that takes text: hosted servers,
llama-cpp-python, vLLM's own OpenAI route, and others.

API: https://platform.openai.com/docs/api-reference/completions; the payloads were recorded from
the servers named in tests/golden. Only fields of that page are sent, because some hosts refuse
others; a server that says that it is vLLM, SGLang or llama.cpp gets all of its sampling fields.
Given text is scored by `echo`, if the server has it and it passes the self-test.
"""

import logging
import math
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson

from proxy.backends.base import (
    GREEDY,
    Call,
    Context,
    Decoded,
    Draft,
    Question,
    Reader,
    Sampling,
    Scorer,
)
from proxy.backends.limits import ModelLimits
from proxy.backends.self_test import TOLERANCE, self_test
from proxy.backends.servers.echo import COMPLETIONS, Completions, Echo, aligned
from proxy.backends.servers.model_list import listed_limits, listed_owner, require_model
from proxy.backends.servers.sampling_fields import (
    OF_OWNERS,
    SamplingFields,
    openai_sampling,
    sglang_sampling,
)
from proxy.backends.servers.vocabulary import UNKNOWN_BIAS, Vocabulary, asked_vocabulary
from proxy.backends.tokens.openai_usage import cached_tokens
from proxy.backends.tokens.sent_text import SentText
from proxy.backends.tokens.tokenizer import LocalReader
from proxy.backends.tokens.wire_values import end_of, error_in, is_failure, text_of
from proxy.backends.transport.http import DONE, UpstreamClient
from proxy.core.types import FinishReason, Scoring
from proxy.errors import UpstreamError, UpstreamMalformed, UpstreamRefused

_log = logging.getLogger(__name__)

_FURTHER = frozenset({"top_k", "min_p", "repetition_penalty"})
# Fields that a stream is opened with, unless the server refuses them.
_EXTRAS: dict[str, Any] = {"stream_options": {"include_usage": True}}
# The reasons to name a server's own kind.
_BETTER = {
    "vllm": "takes token ids, so that no candidates fall together",
    "sglang": "scores from the prefix cache, where echo computes the whole context at every call",
    "llamacpp": "scores by forced_decode, and there is no echo here",
}
# An end token and the tokens of half a character have no text.
_MAX_WITHOUT_TEXT = 4


@dataclass(frozen=True, slots=True)
class _CompletionEvent:
    """One event of a stream; `num_cached_tokens` comes with the usage."""

    text: str
    end: FinishReason | None
    num_cached_tokens: int | None


class OpenAI:
    """Student or teacher behind `/v1/completions`.

    The reader counts the tokens of a stream, event by event. Log-probabilities would name them, but
    if asked for those, llama-cpp-python 0.3.36 leaves out characters of several tokens.
    """

    def __init__(
        self,
        route: Completions,
        reader: Reader,
        extras: Mapping[str, Any],
        scorers: tuple[Scorer, ...] = (),
        why_not: Mapping[Scoring, str] | None = None,
    ) -> None:
        self._route = route
        self._client = route.client
        self.reader = reader
        self._extras = extras
        self.scorers = scorers
        """`Echo`, if it passed the self-test."""
        self.why_not: Mapping[Scoring, str] = why_not or {}
        """The reason that there is no `Echo`."""

    @property
    def unsampled(self) -> frozenset[str]:
        """The sampling values that the server's route has no field for, as far as is known."""
        return _FURTHER if self._route.sampling is openai_sampling else frozenset()

    @property
    def sampling(self) -> SamplingFields:
        """The server's sampling fields."""
        return self._route.sampling

    @classmethod
    async def connect(
        cls,
        client: UpstreamClient,
        model: str,
        reader: LocalReader,
        sampling: SamplingFields = openai_sampling,
        *,
        scores: bool,
    ) -> "OpenAI":
        """Find out what the server accepts and, if it `scores`, whether its `echo` can be trusted.

        Raises `UpstreamRefused` if it does not even write.
        """
        call = Call("connect")
        sent = SentText(client.upstream, reader.codec)
        route = Completions(client, model, sampling=sampling, sent=sent)
        extras = await _accepted_extras(route, reader, call)
        if not scores:
            return cls(route, reader, extras, why_not={"echo": "no pair has it as its teacher"})
        try:
            echo = await _trusted_echo(cls(route, reader, extras), route, reader, call)
        except UpstreamError as error:
            if error.retryable:
                raise
            advice = f"; {_advice(sampling)}" if sampling in OF_OWNERS.values() else ""
            _log.warning("%s; it will not score by echo%s", error, advice)
            reason = str(error).removeprefix(f"upstream '{client.upstream}': ") + advice
            return cls(route, reader, extras, why_not={"echo": reason})
        return cls(echo.route, reader, extras, scorers=(echo,))

    async def check(self) -> None:
        if self.sampling is sglang_sampling:  # it answers under any name, with what it serves
            base, _, _ = self._route.model.partition(":")  # an adapter is BASE:ADAPTER
            await require_model(self._client, self._route.model, base, no_adapters=True)
            return
        # Hosts do not list every model that they serve; `connect` has tried this model.
        await self._client.get("/v1/models")

    async def limits(self) -> ModelLimits:
        return await listed_limits(self._client, self._route.model)

    async def write(
        self, context: Context, sampling: Sampling, max_tokens: int, call: Call
    ) -> AsyncGenerator[Draft]:
        route = self._route
        body = {
            **route.body(context, max_tokens, sampling),
            **self._extras,
            "stream": True,
        }
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if sampling.seed is not None:
            body["seed"] = sampling.seed_31_bits
        end: FinishReason | None = None
        num_cached: int | None = None
        async with self._client.stream(COMPLETIONS, body, call) as events:
            # Read to the very end, so that the connection can be reused.
            async for payload in events:
                if payload == DONE:
                    continue
                event = self._event(payload)
                self._client.expect_no_text_after(end, event.text)
                end = event.end or end
                if event.num_cached_tokens is not None:
                    num_cached = event.num_cached_tokens
                if event.text:
                    yield Draft(await self._pieces(event.text, call))
            if end is None:
                raise self._client.broken_off()
        yield Draft((), end, num_cached)

    def _event(self, payload: bytes) -> _CompletionEvent:
        with self._client.expecting("a stream event"):
            row = orjson.loads(payload)
            if error := error_in(row):
                raise self._client.stream_failure(error)
            choices = row.get("choices")
            if not choices:  # the usage
                return _CompletionEvent("", None, cached_tokens(row))
            reason = choices[0].get("finish_reason")
            if is_failure(reason):
                raise self._client.stream_failure(f"finish_reason is {reason}")
            end = end_of(reason, self._client.upstream)
            return _CompletionEvent(text_of(choices[0].get("text")), end, cached_tokens(row))

    async def _pieces(self, text: str, call: Call) -> tuple[str, ...]:
        (segment,) = await self.reader.encode([text], call)
        return ("",) * (len(segment.token_ids) - 1) + (text,)

    async def decode(self, context: Context, max_tokens: int, call: Call) -> Decoded:
        body = {**self._route.body(context, max_tokens, GREEDY), "logprobs": 1}
        reply = await self._client.post(COMPLETIONS, body, call)
        with self._client.expecting("the written answer"):
            choice = reply["choices"][0]
            written, text = _written(choice), text_of(choice["text"])
            if not written or not text:
                raise ValueError("it came without text or without log-probabilities")
            texts, logprobs = _whole_characters(text, written, choice["logprobs"])
        return Decoded(tuple(await self.reader.encode(texts, call)), tuple(logprobs))


async def sampling_fields(client: UpstreamClient, model: str) -> SamplingFields:
    """Return the server's sampling fields, by the name with which it signs its list of models."""
    owner = await listed_owner(client, model)
    if owner is not None and (known := OF_OWNERS.get(owner)) is not None:
        _log.info("upstream '%s': %s", client.upstream, _advice(known))
        return known
    _log.warning(
        "upstream '%s': its defaults are not known (its list of models is signed by %s, not by %s):"
        " what the server or the model's generation_config.json says about %s holds unseen",
        client.upstream,
        "nobody" if owner is None else repr(owner),
        ", ".join(OF_OWNERS),
        ", ".join(sorted(_FURTHER)),
    )
    return openai_sampling


def _advice(sampling: SamplingFields) -> str:
    """The kind that suits a known server better."""
    owner = next(name for name, fields in OF_OWNERS.items() if fields is sampling)
    return f"its server is {owner}, and `kind: {owner}` {_BETTER[owner]}"


async def _accepted_extras(route: Completions, reader: Reader, call: Call) -> Mapping[str, Any]:
    """Return the extras if the server accepts them: some servers refuse unknown fields."""
    try:
        await _try(OpenAI(route, reader, _EXTRAS), reader, call)
    except UpstreamRefused:
        await _try(OpenAI(route, reader, {}), reader, call)
        return {}
    return _EXTRAS


async def _try(writer: OpenAI, reader: Reader, call: Call) -> None:
    question = Question(prompt="1 + 1 =")
    context = Context(await reader.render(question, call), question=question)
    async for _ in writer.write(context, GREEDY, 1, call):
        pass


async def _trusted_echo(writer: OpenAI, route: Completions, reader: Reader, call: Call) -> Echo:
    """Return the scorer if it passes, else raise an `UpstreamError` that says what is wrong."""
    test = await self_test(writer, reader, Echo(route), call)
    if not test.passed:
        message = (
            f"echo's log-probabilities of a text differ from those that it was written with by up "
            f"to {test.worst:.2g} nats per token ({TOLERANCE:g} are allowed)"
        )
        raise UpstreamMalformed(route.client.upstream, message)
    echo = Echo(replace(route, adds=await Echo(route).adds(call)))
    if route.sampling is sglang_sampling:
        echo.vocabulary = await _vocabulary(route)
    return echo


async def _vocabulary(route: Completions) -> Vocabulary:
    body = {"model": route.model, "prompt": "a", "max_tokens": 1, **route.sampling(GREEDY)}
    return await asked_vocabulary(route.client, COMPLETIONS, {**body, "logit_bias": UNKNOWN_BIAS})


def _written(choice: dict[str, Any]) -> list[tuple[str, float | None]] | None:
    """The tokens and their log-probabilities, in this route's own shape or in the chat route's."""
    found = choice.get("logprobs")
    if not found:
        return None
    if "content" in found:
        return [(text_of(entry["token"]), entry["logprob"]) for entry in found["content"] or ()]
    return list(zip(map(text_of, found["tokens"]), found["token_logprobs"], strict=True))


def _whole_characters(
    text: str, written: Sequence[tuple[str, float | None]], found: Mapping[str, Any]
) -> tuple[list[str], list[tuple[float, ...]]]:
    """Cut the text into the shortest pieces of whole characters; add their log-probabilities."""
    offsets = found.get("text_offset") or None
    numbers = range(min(_MAX_WITHOUT_TEXT, len(written) - 1) + 1)
    alignment = aligned([token for token, _ in written], offsets, text, numbers)
    data = text.encode()
    texts: list[str] = []
    logprobs: list[tuple[float, ...]] = []
    start, waiting = 0, list[float]()
    for (_, logprob), reach in zip(written, alignment.reaches, strict=False):
        if start == len(data):  # half a character
            break
        waiting.append(math.nan if logprob is None else float(logprob))
        end = reach.most
        is_whole = end == len(data) or data[end] & 0xC0 != 0x80
        if reach.least == end > start and is_whole:
            texts.append(data[start:end].decode())
            logprobs.append(tuple(waiting))
            start, waiting = end, []
    return texts, logprobs
