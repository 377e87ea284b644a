"""vLLM's wire format: `/v1/completions`, `/tokenize`; the rules are those of 0.32.

Fields as recorded in tests/golden/vllm-0.32.0. The prefix cache holds whole blocks of 16 tokens; a
request that wants log-probabilities of its prompt fills it and does not use it.
"""

from typing import Any

import orjson

from benchmarks.simulator.engine import Chunk, Engine, Reuse, Running
from benchmarks.simulator.http import Reply
from benchmarks.simulator.words import (
    TOP_LOGPROBS,
    VOCABULARY,
    decode,
    encode,
    logprob,
)

_BLOCK = 16
_HEAD = b'"id":"cmpl-0","object":"text_completion","created":1795334375,"model":"sim"'
_STRINGS = [orjson.dumps(text) for text in VOCABULARY]
_TOLD = [b"{%s:-0.5}" % string for string in _STRINGS]
_CANDIDATES = range(10**6, 10**6 + len(TOP_LOGPROBS))
"""Outside of the vocabulary: nobody asks what they are."""
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


class VllmWire:
    """Answers as vLLM does. What our backend, the published loop and OpenAI clients ask for."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def handle(self, path: str, body: bytes, reply: Reply) -> None:
        """One request."""
        if path == "/tokenize":
            ids = encode(orjson.loads(body)["prompt"])
            strings = [VOCABULARY[token] for token in ids]
            reply.json(orjson.dumps({"tokens": ids, "token_strs": strings}))
            return
        asked = orjson.loads(body)
        if path == "/v1/chat/completions":
            messages = asked["messages"]
            ids = encode("".join(f"<|{m['role']}|>{m['content']}" for m in messages))
        else:
            prompt = asked["prompt"]
            ids = encode(prompt) if isinstance(prompt, str) else prompt
        reuse = Reuse(limit=0) if "prompt_logprobs" in asked else Reuse(page=_BLOCK)
        async with self._engine.admitted(ids, reuse) as running:
            if asked.get("stream") and asked.get("stop"):
                reply.json(b'{"error":{"message":"no stop strings in simulated streams"}}', 400)
            elif asked.get("stream"):
                await self._stream(running, len(ids), asked, reply)
            else:
                await self._whole(running, ids, asked, reply, is_chat="messages" in asked)

    async def _stream(
        self, running: Running, num_prompt: int, asked: dict[str, Any], reply: Reply
    ) -> None:
        reply.begin()
        num = 0
        async for chunk in running.write(asked["max_tokens"], self._engine.rates.stream_interval):
            num += len(chunk.ids)
            reply.event(b'{%s,"choices":[%s]}' % (_HEAD, _choice(chunk)))
        usage = _usage(num_prompt, num, running.num_cached)
        reply.event(b'{%s,"choices":[],"usage":%s}' % (_HEAD, usage))
        reply.end()

    async def _whole(
        self,
        running: Running,
        ids: list[int],
        asked: dict[str, Any],
        reply: Reply,
        *,
        is_chat: bool,
    ) -> None:
        stops = asked.get("stop") or ()
        written = await running.whole(asked.get("max_tokens") or 16, stops)
        usage = _usage(len(ids), len(written.ids), running.num_cached)
        ends_at_stop = VOCABULARY[written.ids[-1]] in stops
        text = orjson.dumps(decode(written.ids[:-1] if ends_at_stop else written.ids))
        if is_chat:
            told = b'"message":{"role":"assistant","content":%s}' % text
        else:
            told = b'"text":%s' % text
            told += b',"logprobs":%s' % _logprobs(written.ids, asked)
            told += b',"prompt_logprobs":%s' % _prompt_logprobs(ids, asked)
        stopped_by = orjson.dumps(VOCABULARY[written.ids[-1]] if ends_at_stop else None)
        choice = b'{"index":0,%s,"finish_reason":"%s","stop_reason":%s}' % (
            told,
            str(written.end).encode(),
            stopped_by,
        )
        reply.json(b'{%s,"choices":[%s],"usage":%s}' % (_HEAD, choice, usage))


def _choice(chunk: Chunk) -> bytes:
    """A stream's chunk, with the tokens one by one."""
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
