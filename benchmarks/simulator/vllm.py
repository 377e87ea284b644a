"""Speaks vLLM's wire format, `/v1/completions` and `/tokenize`, by the rules of 0.32.

Fields as recorded in tests/golden/vllm-0.32.0. The prefix cache holds whole blocks, of 16 tokens by
default; a request for log-probabilities of its prompt fills the cache and does not use it. A server
with `--enable-scale-out` also has `/inference/v1/generate`, by the rules of Model Runner V2
(tests/golden/vllm-0.32.0-v2): such a request may use the cache, and then has no log-probabilities
for tokens from there.
"""

import asyncio
import base64
import struct
from dataclasses import dataclass
from typing import Any

import orjson

from benchmarks.simulator.engine import Chunk, Engine, Reuse
from benchmarks.simulator.http import Reply
from benchmarks.simulator.words import TOP_LOGPROBS, VOCABULARY, decode, encode, logprob

BLOCK = 16
_HEAD = b'"id":"cmpl-0","object":"text_completion","created":1795334375,"model":"sim"'
_STRINGS = [orjson.dumps(text) for text in VOCABULARY]
_TOLD = [b"{%s:-0.5}" % string for string in _STRINGS]
_CANDIDATES = range(10**6, 10**6 + len(TOP_LOGPROBS))
"""Outside the vocabulary, because nobody asks what they are."""
_TOP_ROW = b",".join(
    b'"%d":{"logprob":%f,"rank":%d,"decoded_token":"x"}' % (token, x, rank)
    for rank, (token, x) in enumerate(zip(_CANDIDATES, TOP_LOGPROBS, strict=True), 1)
)
_OWN = [
    b'"%d":{"logprob":%f,"rank":100,"decoded_token":%s}' % (token, logprob(token), string)
    for token, string in enumerate(_STRINGS)
]
_ROWS = [b",{%s}" % own for own in _OWN]
_ROWS_WITH_TOP = [b",{%s,%s}" % (own, _TOP_ROW) for own in _OWN]
_NEXT_TOP = orjson.dumps(
    {f"token_id:{token}": x for token, x in zip(_CANDIDATES, TOP_LOGPROBS, strict=True)}
)
_NEXT_CANDIDATES = orjson.dumps(
    [
        {"token_id": token, "logprob": x, "rank": rank}
        for rank, (token, x) in enumerate(zip(_CANDIDATES, TOP_LOGPROBS, strict=True), 1)
    ]
)
GENERATE = "/inference/v1/generate"


@dataclass(frozen=True, slots=True)
class _Counts:
    """The usage of one prompt."""

    num: int
    num_cached: int


class VllmWire:
    """Answers as vLLM does, for our backend, the published loop and OpenAI clients only."""

    def __init__(self, engine: Engine, *, scale_out: bool = False, block: int = BLOCK) -> None:
        self._engine = engine
        self._scale_out = scale_out
        self._block = block

    async def handle(self, path: str, body: bytes, reply: Reply) -> None:
        """Answer one request."""
        if path == "/tokenize":
            ids = encode(orjson.loads(body)["prompt"])
            strings = [VOCABULARY[token] for token in ids]
            reply.json(orjson.dumps({"tokens": ids, "token_strs": strings}))
            return
        asked = orjson.loads(body)
        if path == GENERATE:
            await self._score(asked["token_ids"], asked["sampling_params"], reply)
            return
        if path == "/v1/chat/completions":
            messages = asked["messages"]
            prompts = [encode("".join(f"<|{m['role']}|>{m['content']}" for m in messages))]
        else:
            prompts = _prompts(asked["prompt"])
        if asked.get("stream") and (asked.get("stop") or len(prompts) > 1):
            reply.json(b'{"error":{"message":"simulated streams: one prompt, no stop"}}', 400)
        elif asked.get("stream"):
            await self._stream(prompts[0], asked, reply)
        else:
            is_chat = "messages" in asked
            answers = await asyncio.gather(
                *(self._whole(n, ids, asked, is_chat=is_chat) for n, ids in enumerate(prompts))
            )
            choices = b",".join(choice for choice, _ in answers)
            # As in vLLM: the tokens of all prompts, the cached tokens of the last prompt.
            usage = _usage(
                sum(map(len, prompts)),
                sum(counts.num for _, counts in answers),
                answers[-1][1].num_cached,
            )
            reply.json(b'{%s,"choices":[%s],"usage":%s}' % (_HEAD, choices, usage))

    async def _score(self, ids: list[int], asked: dict[str, Any], reply: Reply) -> None:
        """Score the prompt's tokens after `prompt_logprob_start`, and write one token."""
        if not self._scale_out:
            reply.json(b'{"error":{"message":"Not Found"}}', 404)
            return
        reads_cache = asked.get("skip_reading_prefix_cache") is False
        reuse = Reuse(page=self._block) if reads_cache else Reuse(limit=0)
        async with self._engine.admitted(ids, reuse) as running:
            num_cached = running.num_cached
            # The token that is written is not read, so it does not come into the cache.
            await self._engine.until(running.ready_at + 1 / self._engine.rates.decode_tok_s)
        first = asked["prompt_logprob_start"]
        scores = b"null"
        if num_cached <= first and not self._engine.is_preempted():
            scores = b'"%s"' % _npy([logprob(token) for token in ids[first + 1 :]])
        rows = _ROWS_WITH_TOP if asked["prompt_logprobs"] else _ROWS
        reply.json(
            b'{"prompt_logprobs":[null%s],"prompt_token_id_logprobs":%s,'
            b'"choices":[{"logprobs":{"content":[{"top_logprobs":%s}]}}],"usage":%s}'
            % (
                b"".join([rows[token] for token in ids[num_cached + 1 :]]),
                scores,
                _NEXT_CANDIDATES,
                _usage(len(ids), 1, num_cached),
            )
        )

    def _reuse(self, asked: dict[str, Any]) -> Reuse:
        return Reuse(limit=0) if "prompt_logprobs" in asked else Reuse(page=self._block)

    async def _stream(self, ids: list[int], asked: dict[str, Any], reply: Reply) -> None:
        num = 0
        async with self._engine.admitted(ids, self._reuse(asked)) as running:
            reply.begin()
            interval = self._engine.rates.stream_interval
            async for chunk in running.write(asked["max_tokens"], interval):
                num += len(chunk.ids)
                await reply.event(b'{%s,"choices":[%s]}' % (_HEAD, _choice(chunk)))
            usage = _usage(len(ids), num, running.num_cached)
            await reply.event(b'{%s,"choices":[],"usage":%s}' % (_HEAD, usage))
            reply.end()

    async def _whole(
        self, index: int, ids: list[int], asked: dict[str, Any], *, is_chat: bool
    ) -> tuple[bytes, _Counts]:
        """Return the choice of one prompt."""
        stops = asked.get("stop") or ()
        async with self._engine.admitted(ids, self._reuse(asked)) as running:
            written = await running.whole(asked.get("max_tokens") or 16, stops)
        ends_at_stop = VOCABULARY[written.ids[-1]] in stops
        text = orjson.dumps(decode(written.ids[:-1] if ends_at_stop else written.ids))
        if is_chat:
            content = b'"message":{"role":"assistant","content":%s}' % text
        else:
            content = b'"text":%s' % text
            content += b',"logprobs":%s' % _logprobs(written.ids, asked)
            content += b',"prompt_logprobs":%s' % _prompt_logprobs(ids, asked)
        stopped_by = orjson.dumps(VOCABULARY[written.ids[-1]] if ends_at_stop else None)
        choice = b'{"index":%d,%s,"finish_reason":"%s","stop_reason":%s}' % (
            index,
            content,
            str(written.end).encode(),
            stopped_by,
        )
        return choice, _Counts(len(written.ids), running.num_cached)


def _prompts(prompt: Any) -> list[list[int]]:  # noqa: ANN401
    """Return the ids of one text or several, given as text or as ids."""
    if isinstance(prompt, str):
        return [encode(prompt)]
    return prompt if isinstance(prompt[0], list) else [prompt]


def _choice(chunk: Chunk) -> bytes:
    """Return a stream's chunk, with the tokens one by one."""
    strings = b",".join([_STRINGS[token] for token in chunk.ids])
    values = b",".join([b"-0.5"] * len(chunk.ids))
    tops = b",".join([_TOLD[token] for token in chunk.ids])
    end = b"null" if chunk.end is None else b'"%s"' % chunk.end.encode()
    return (
        b'{"index":0,"text":%s,"logprobs":{"text_offset":[],"token_logprobs":[%s],"tokens":[%s],'
        b'"top_logprobs":[%s]},"finish_reason":%s,"stop_reason":null,"token_ids":%s}'
        % (orjson.dumps(decode(chunk.ids)), values, strings, tops, end, orjson.dumps(chunk.ids))
    )


def _logprobs(written: list[int], asked: dict[str, Any]) -> bytes:
    if asked.get("logprobs") is None:
        return b"null"
    if wanted := asked.get("logprob_token_ids"):
        own = orjson.dumps({f"token_id:{token}": logprob(token) for token in wanted})
        return b'{"tokens":[],"token_logprobs":[],"top_logprobs":[%s]}' % own
    strings = b",".join([_STRINGS[token] for token in written])
    values = b",".join([b"-0.5"] * len(written))
    top = _NEXT_TOP if asked["logprobs"] else b"{}"
    tops = b",".join([top] * len(written))
    return b'{"tokens":[%s],"token_logprobs":[%s],"top_logprobs":[%s]}' % (strings, values, tops)


def _prompt_logprobs(ids: list[int], asked: dict[str, Any]) -> bytes:
    if "prompt_logprobs" not in asked:
        return b"null"
    rows = _ROWS_WITH_TOP if asked["prompt_logprobs"] else _ROWS
    return b"[null%s]" % b"".join([rows[token] for token in ids[1:]])


def _usage(num_prompt: int, num: int, num_cached: int) -> bytes:
    return b'{"prompt_tokens":%d,"completion_tokens":%d,"prompt_tokens_details":%s}' % (
        num_prompt,
        num,
        b'{"cached_tokens":%d}' % num_cached,
    )


def _npy(column: list[float]) -> bytes:
    """Return a column of float32 numbers as numpy would save it, in base64."""
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (%d, 1), }" % len(column)
    header = header.ljust(117) + b"\n"
    preamble = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header))
    return base64.b64encode(preamble + header + struct.pack(f"<{len(column)}f", *column))
