"""Speaks SGLang's wire format, `/generate` and `/v1/tokenize`, by the rules of 0.5.23.

Fields and rules as in tests/golden/sglang-0.5.23, with `--incremental-streaming-output`. The prefix
cache serves a request up to `logprob_start_len`, token by token.
"""

from itertools import islice
from typing import Any

import orjson

from benchmarks.simulator.engine import Chunk, Engine, Reuse, Running
from benchmarks.simulator.http import Reply
from benchmarks.simulator.words import END, TOP_LOGPROBS, VOCABULARY, decode, encode, logprob

_ID = "5a1c0c2f6f0e4f7b9d3f0b0a4c1d2e3f"
# Candidates outside the vocabulary, because nobody asks what they are.
_TOP = orjson.dumps([[x, 10**6 + rank, None] for rank, x in enumerate(TOP_LOGPROBS)])
_WRITTEN = [orjson.dumps([-0.5, token, text]) for token, text in enumerate(VOCABULARY)]
_SCORED = [orjson.dumps([logprob(token), token, None]) for token in range(len(VOCABULARY))]


class SGLangWire:
    """Answers as SGLang does, but only the requests of our backend and the published loop."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def handle(self, path: str, body: bytes, reply: Reply) -> None:
        """Answer one request."""
        if path == "/v1/tokenize":
            reply.json(_tokenized(orjson.loads(body)["prompt"]))
            return
        asked = orjson.loads(body)
        if "logit_bias" in asked["sampling_params"]:
            words = f"logit_bias must has keys in [0, {len(VOCABULARY) - 1}], got -1."
            reply.json(orjson.dumps({"error": {"message": words}}), 400)
            return
        ids = asked["input_ids"] if "input_ids" in asked else encode(asked["text"])
        start = asked.get("logprob_start_len", -1) if asked.get("return_logprob") else -1
        reuse = Reuse(limit=None if start < 0 else start)
        async with self._engine.admitted(ids, reuse) as running:
            if asked.get("stream") and asked["sampling_params"].get("stop"):
                reply.json(b'{"error":{"message":"no stop strings in simulated streams"}}', 400)
            elif asked.get("stream"):
                await self._stream(running, len(ids), asked["sampling_params"], reply)
            else:
                await self._whole(running, ids, asked, start, reply)

    async def _stream(
        self, running: Running, num_prompt: int, sampled: dict[str, Any], reply: Reply
    ) -> None:
        reply.begin()
        interval = self._engine.rates.stream_interval
        async for chunk in running.write(sampled["max_new_tokens"], interval):
            await reply.event(_event(chunk, num_prompt, running.num_cached))
        reply.end()

    async def _whole(
        self, running: Running, ids: list[int], asked: dict[str, Any], start: int, reply: Reply
    ) -> None:
        sampled = asked["sampling_params"]
        stops = sampled.get("stop") or ()
        written = await running.whole(sampled["max_new_tokens"], stops)
        meta = _meta(written, len(ids), running.num_cached)
        if asked.get("return_logprob"):
            rows = b",".join(_WRITTEN[token] for token in written.ids)
            meta += b',"output_token_logprobs":[%s]' % rows
            if asked.get("top_logprobs_num"):
                meta += b',"output_top_logprobs":[%s]' % b",".join([_TOP] * len(written.ids))
        if start >= 0:
            meta += _input_logprobs(ids, start, with_top=bool(asked.get("top_logprobs_num")))
        text = orjson.dumps(_trimmed(written, stops))
        ids_written = orjson.dumps(written.ids)
        reply.json(b'{"text":%s,"output_ids":%s,"meta_info":{%s}}' % (text, ids_written, meta))


def _trimmed(written: Chunk, stops: tuple[str, ...] | list[str]) -> str:
    """Return the text without the stop string that ended it, as with `no_stop_trim: false`."""
    text = decode(written.ids)
    ended_by = next((stop for stop in stops if text.endswith(stop)), "")
    return text.removesuffix(ended_by)


def _event(chunk: Chunk, num_prompt: int, num_cached: int) -> bytes:
    text = orjson.dumps(decode(chunk.ids))
    rows = b",".join([_WRITTEN[token] for token in chunk.ids])
    return b'{"text":%s,"output_ids":%s,"meta_info":{%s,"output_token_logprobs":[%s]}}' % (
        text,
        orjson.dumps(chunk.ids),
        _meta(chunk, num_prompt, num_cached),
        rows,
    )


def _meta(chunk: Chunk, num_prompt: int, num_cached: int) -> bytes:
    total = chunk.num_before + len(chunk.ids)
    reason = b"null"
    if chunk.end == "length":
        reason = b'{"type":"length","length":%d}' % total
    elif chunk.end == "stop":
        last = chunk.ids[-1]
        matched = last if last == END else VOCABULARY[last]
        reason = orjson.dumps({"type": "stop", "matched": matched})
    return (
        b'"id":"%s","finish_reason":%s,"prompt_tokens":%d,"weight_version":"default",'
        b'"num_retractions":0,"reasoning_tokens":0,"completion_tokens":%d,"cached_tokens":%d,'
        b'"cached_tokens_details":null,"dp_rank":null,"output_token_logprobs_length":%d'
        % (_ID.encode(), reason, num_prompt, total, num_cached, total)
    )


def _input_logprobs(ids: list[int], start: int, *, with_top: bool) -> bytes:
    rows = b"".join([b"," + _SCORED[token] for token in islice(ids, start + 1, None)])
    first = b"[null,%d,null]" % ids[start]
    fields = b',"input_token_logprobs":[%s%s]' % (first, rows)
    if with_top:
        num = len(ids) - start - 1
        fields += b',"input_top_logprobs":[null%s]' % ((b"," + _TOP) * num)
    return fields


def _tokenized(prompt: str | list[str]) -> bytes:
    tokens = encode(prompt) if isinstance(prompt, str) else [encode(text) for text in prompt]
    return orjson.dumps({"tokens": tokens})
