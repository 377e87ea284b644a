"""Toy servers with the wire formats of vLLM, SGLang and llama.cpp, and with faults on demand.

Their model's next token, and every log-probability, is a function of the ids so far. Its tokens cut
characters in two, and the delimiter may lie in one token, in several, or straddle two steps.
"""

import asyncio
import socket
import zlib
from array import array
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson
from aiohttp import web

Kind = Literal["vllm", "sglang", "llamacpp"]
Trouble = Literal["drop", "half", "stall", "truncate", "error", "429", "500", "503"]
_END = 0
_HALF = "\ufffd"


class Model:
    """A tokenizer and what it would write. `words` make two models' tokens differ."""

    def __init__(self, words: Sequence[str], salt: int) -> None:
        spelled = [b".", b".\n", b"\n", b"\n\n", b".\n\nSo", b"\xf0\x9f", b"\x8e\x89"]
        self._salt = salt
        self.vocabulary = [b"</s>", b"a", *(bytes([i]) for i in range(256))]
        self._first = len(self.vocabulary)
        self.vocabulary += [*spelled, *(word.encode() for word in words)]
        # Backwards, so that the two ids of "a" and of "." mean the first.
        self._ids = {text: i for i, text in reversed(list(enumerate(self.vocabulary))) if i}
        self._longest = max(map(len, self._ids))

    def tokens(self, text: str) -> list[int]:
        """The ids of a text: always the longest token that fits."""
        content, ids, start = text.encode(), [], 0
        while start < len(content):
            for size in range(self._longest, 0, -1):
                if (found := self._ids.get(content[start : start + size])) is not None:
                    ids.append(found)
                    break
            start += size
        return ids

    def text(self, ids: Sequence[int]) -> str:
        """Half a character is a replacement character, the end token nothing."""
        return b"".join(self.vocabulary[i] for i in ids if i != _END).decode(errors="replace")

    def draw(self, ids: Sequence[int], *salt: int) -> int:
        """A number that looks random and is a function of its arguments."""
        return zlib.crc32(array("q", [*ids, -self._salt, *salt]).tobytes())

    def next_id(self, ids: Sequence[int], *salt: int) -> int:
        """The token that it writes after `ids`."""
        must_follow = {b"\xf0\x9f": b"\x8e\x89", b".\n": b"\n", b".": b"\n\n"}
        if (forced := must_follow.get(self.vocabulary[ids[-1]])) is not None:
            return self._ids[forced]
        drawn = self.draw(ids, *salt)
        for share, text in ((12, b"\xf0\x9f"), (22, b".\n"), (31, b"."), (36, b".\n\nSo")):
            if drawn % 100 < share:
                return self._ids[text]
        if drawn % 100 < 40:
            return _END
        words = len(self.vocabulary) - self._first - 7
        return self._first + 7 + drawn // 100 % words

    def logprob(self, before: Sequence[int], token: int) -> float:
        """The log-probability of a token after `before`."""
        return -0.05 - self.draw(before, token) % 1000 / 500

    def top(self, before: Sequence[int], num: int) -> list[float]:
        """The log-probabilities of the most probable tokens."""
        flat = self.draw(before, -7) % 10 / 10 + 0.1
        return [-0.1 - flat * i for i in range(num)]


@dataclass(frozen=True, slots=True)
class Fault:
    """The fate of the `request`-th request of a trajectory, after the fraction `at` of its
    answer's events.
    """

    request: int
    at: float
    trouble: Trouble


@dataclass(slots=True)
class Written:
    """One write: the ids that it was to continue, and the ids that it wrote."""

    prompt: list[int]
    ids: list[int]


@dataclass(slots=True)
class Toy:
    """One server. Faults are told apart by the trajectory's session."""

    kind: Kind
    model: Model
    faults: dict[str, Fault] = field(default_factory=dict)
    happened: dict[str, str] = field(default_factory=dict)
    """What each session's fault hit: `stream` or `answer`."""
    num_requests: Counter[str] = field(default_factory=Counter)
    writes: dict[str, list[Written]] = field(default_factory=dict)
    num_open: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    """No request is open."""
    base_url: str = ""
    delay_s: float = 0.0
    """How long every answer takes."""
    came: asyncio.Event = field(default_factory=asyncio.Event)
    """Set by every request for tokens, text or scores."""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = orjson.loads(await request.read() or b"{}")
        if request.method == "GET" and request.path == "/v1/models":
            return web.Response(body=_json({"data": [{"id": "toy"}]}))
        if "logit_bias" in body.get("sampling_params", {}):
            words = f"logit_bias must has keys in [0, {len(self.model.vocabulary) - 1}], got -1."
            return web.Response(status=400, body=_json({"error": {"message": words}}))
        session = request.headers.get("x-session-id", "")
        content = getattr(self, f"_{self.kind}")(request.path, body, session)
        events = content if isinstance(content, list) else [content]
        index = self.num_requests[session]
        self.num_requests[session] += 1
        fault = self.faults.get(session)
        self.num_open += 1
        self.idle.clear()
        self.came.set()
        try:
            await asyncio.sleep(self.delay_s)
            if fault is None or fault.request != index:
                return await self.answer(request, events, streams=isinstance(content, list))
            self.happened[session] = "stream" if isinstance(content, list) else "answer"
            return await self._fail(request, events, fault, streams=isinstance(content, list))
        finally:
            self.num_open -= 1
            if not self.num_open:
                self.idle.set()

    async def answer(
        self, request: web.Request, events: list[bytes], *, streams: bool
    ) -> web.StreamResponse:
        """Answer where no fault is due."""
        return await _send(request, events, streams=streams)

    async def _fail(
        self, request: web.Request, events: list[bytes], fault: Fault, *, streams: bool
    ) -> web.StreamResponse:
        if fault.trouble in {"429", "500", "503"}:
            headers = {"retry-after": "1"} if fault.trouble != "500" else {}
            return web.Response(status=int(fault.trouble), headers=headers, text="not now")
        cut = int(fault.at * (len(events) + 1))
        some = events[:cut]
        if fault.trouble == "error":
            return await self._tell_failure(request, some, streams=streams)
        if cut < len(events) and fault.trouble != "drop":
            some.append(events[cut][: int(len(events[cut]) * fault.at)])
        if fault.trouble == "truncate":
            return await _send(request, some, streams=streams)
        size = None if streams else sum(map(len, events)) + 1
        response = await _begin(request, size)
        for event in some:
            await response.write(event)
            await asyncio.sleep(0)
        if fault.trouble == "stall":
            await asyncio.Event().wait()
        if request.transport is not None:
            request.transport.abort()
        return response

    async def _tell_failure(
        self, request: web.Request, some: list[bytes], *, streams: bool
    ) -> web.StreamResponse:
        """In the server's own words; SGLang's status is 200 even where it does not stream."""
        failure: dict[str, Any] = {"error": {"message": "out of memory", "code": 500}}
        if streams:
            return await _send(request, [*some, _event(failure)], streams=True)
        if self.kind == "sglang" and request.path == "/generate":
            reason = {"type": "abort", "message": "Aborted", "status_code": 503}
            return web.Response(body=_json({"meta_info": {"finish_reason": reason}}))
        return web.Response(status=500, body=_json(failure))

    def _write(
        self, prompt: list[int], num: int, body: dict[str, Any], seed: int | None, session: str
    ) -> list[int]:
        """Up to `num` ids, the end token included. As with real servers, what is drawn with a seed
        depends on how many were drawn before, and without one on nothing that can be repeated.
        """
        writes = self.writes.setdefault(session, [])
        ids: list[int] = []
        while len(ids) < num and ids[-1:] != [_END]:
            salt: tuple[int, ...] = ()
            if body["temperature"] > 0:
                salt = (-len(writes) - 9, 0) if seed is None else (seed, len(ids))
            ids.append(self.model.next_id([*prompt, *ids], *salt))
        writes.append(Written(prompt, ids))
        return ids

    def _chunks(self, ids: list[int]) -> list["_Chunk"]:
        """The events of a stream, of one to three tokens each; half a character waits."""
        ends = [len(self.model.text(ids[:i]).rstrip(_HALF)) for i in range(len(ids) + 1)]
        text = self.model.text(ids)
        chunks: list[_Chunk] = []
        start = 0
        while start < len(ids):
            stop = min(len(ids), start + 1 + self.model.draw(ids[: start + 1]) % 3)
            strings = [text[ends[i] : ends[i + 1]] for i in range(start, stop)]
            end = None if stop < len(ids) else "stop" if ids[-1] == _END else "length"
            chunks.append(_Chunk(ids[start:stop], strings, stop, end))
            start = stop
        return chunks

    def _vllm(self, path: str, body: dict[str, Any], session: str) -> bytes | list[bytes]:
        if path == "/tokenize":
            ids = self.model.tokens(body["prompt"])
            return _json({"tokens": ids, "token_strs": [self.model.text([i]) for i in ids]})
        if not body.get("stream"):
            return _json({"choices": [self._vllm_scores(body["prompt"], body)], "usage": {}})
        ids = self._write(body["prompt"], body["max_tokens"], body, body.get("seed"), session)
        events = [_event({"choices": [chunk.vllm()]}) for chunk in self._chunks(ids)]
        usage = {"prompt_tokens_details": {"cached_tokens": 0}}
        return [*events, _event({"choices": [], "usage": usage}), b"data: [DONE]\n\n"]

    def _vllm_scores(self, ids: list[int], body: dict[str, Any]) -> dict[str, Any]:
        rows: list[Any] = [None]
        for i in range(1, len(ids)):
            top = enumerate(self.model.top(ids[:i], body["prompt_logprobs"]))
            # The candidates' ids are beyond the vocabulary, the prompt's own token ranks below.
            row: dict[str, Any] = {
                str(10**6 + rank): {"logprob": x, "rank": rank + 1} for rank, x in top
            }
            logprob, spelt = self.model.logprob(ids[:i], ids[i]), self.model.text([ids[i]])
            row[str(ids[i])] = {"logprob": logprob, "rank": 10**6, "decoded_token": spelt}
            rows.append(row)
        after = enumerate(self.model.top(ids, body.get("logprobs", 0)))
        next_top = {f"token_id:{i}": x for i, x in after}
        return {"prompt_logprobs": rows, "logprobs": {"top_logprobs": [next_top]}}

    def _sglang(self, path: str, body: dict[str, Any], session: str) -> bytes | list[bytes]:
        if path == "/v1/tokenize":
            given = body["prompt"]
            many = isinstance(given, list)
            return _json(
                {"tokens": [*map(self.model.tokens, given)]}
                if many
                else {"tokens": self.model.tokens(given)}
            )
        if path == "/v1/detokenize":
            return _json({"text": [self.model.text(ids) for ids in body["tokens"]]})
        ids, sampled = body["input_ids"], body["sampling_params"]
        if not body.get("stream"):
            return _json({"meta_info": self._sglang_scores(ids, body)})
        seed = sampled.get("sampling_seed")
        written = self._write(ids, sampled["max_new_tokens"], sampled, seed, session)
        events = [_event(c.sglang(len(ids), self.model)) for c in self._chunks(written)]
        return [*events, b"data: [DONE]\n\n"]

    def _sglang_scores(self, ids: list[int], body: dict[str, Any]) -> dict[str, Any]:
        start, num = body["logprob_start_len"], body["top_logprobs_num"]
        after = range(start + 1, len(ids))

        def top(before: list[int]) -> list[Any]:
            return [[x, 10**6 + i, None] for i, x in enumerate(self.model.top(before, num))]

        return {
            "finish_reason": {"type": "length", "length": 1},
            "input_token_logprobs": [
                [None, ids[start], None],
                *([self.model.logprob(ids[:i], ids[i]), ids[i], None] for i in after),
            ],
            "input_top_logprobs": [None, *(top(ids[:i]) for i in after)],
            "output_top_logprobs": [top(ids)],
            "cached_tokens": 0,
        }

    def _llamacpp(self, path: str, body: dict[str, Any], session: str) -> bytes | list[bytes]:
        if path in {"/props", "/health"}:
            return _json({"total_slots": 8})
        if path == "/tokenize":
            ids = self.model.tokens(body["content"])
            pieces = [{"id": i, "piece": [*self.model.vocabulary[i]]} for i in ids]
            return _json({"tokens": pieces if body.get("with_pieces") else ids})
        if not body.get("stream"):
            return _json(self._forced(body["prompt"], body["logit_bias"][0][0], body["n_probs"]))
        ids = self._write(body["prompt"], body["n_predict"], body, body.get("seed"), session)
        events: list[bytes] = []
        for chunk in self._chunks(ids):
            for index, (token, string) in enumerate(zip(chunk.ids, chunk.strings, strict=True)):
                if string or token == _END:  # half a character has no event, so its id never comes
                    count = chunk.num - len(chunk.ids) + index + 1
                    row = {"content": string, "tokens": [token], "tokens_predicted": count}
                    row["completion_probabilities"] = [{"logprob": -0.5}]
                    events.append(_event({**row, "stop": False}))
        last = {"content": "", "stop": True, "tokens": [], "tokens_predicted": len(ids)}
        kind = "eos" if ids[-1] == _END else "limit"
        return [*events, _event({**last, "stop_type": kind, "timings": {"cache_n": 0}})]

    def _forced(self, ids: list[int], token: int, num: int) -> dict[str, Any]:
        timings = {"timings": {"cache_n": 0}}
        if _HALF in self.model.text([token]):  # it comes without its probability
            return timings
        every = range(len(self.model.vocabulary))
        known = [(i, self.model.logprob(ids, i)) for i in every]
        top = [(10**6 + i, x) for i, x in enumerate(self.model.top(ids, min(num, 20)))]
        rows = [{"id": i, "logprob": x} for i, x in (top if num <= 20 else [*top, *known])]
        entry = {"id": token, "logprob": self.model.logprob(ids, token), "top_logprobs": rows}
        return {**timings, "completion_probabilities": [entry]}


@dataclass(frozen=True, slots=True)
class _Chunk:
    """An event: its tokens, the text that each completes, how many came up to here, the end."""

    ids: list[int]
    strings: list[str]
    num: int
    end: str | None

    def vllm(self) -> dict[str, Any]:
        return {
            "text": "".join(self.strings),
            "token_ids": self.ids,
            "logprobs": {"tokens": self.strings, "token_logprobs": [-0.5] * len(self.ids)},
            "finish_reason": self.end,
            "stop_reason": None,
        }

    def sglang(self, num_prompt: int, model: Model) -> dict[str, Any]:
        reason: dict[str, Any] | None = {"type": "length", "length": self.num}
        if self.end != "length":
            reason = {"type": "stop", "matched": _END} if self.end else None
        meta = {
            "prompt_tokens": num_prompt,
            "completion_tokens": self.num,
            "finish_reason": reason,
            "output_token_logprobs": [[-0.5, i, model.text([i])] for i in self.ids],
            "cached_tokens": 0,
        }
        return {"text": "".join(self.strings), "output_ids": self.ids, "meta_info": meta}


def _json(value: Any) -> bytes:
    return orjson.dumps(value)


def _event(value: Any) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"


async def _begin(request: web.Request, size: int | None) -> web.StreamResponse:
    response = web.StreamResponse()
    response.content_length = size
    await response.prepare(request)
    return response


async def _send(request: web.Request, events: list[bytes], *, streams: bool) -> web.StreamResponse:
    if not streams:
        return web.Response(body=b"".join(events))
    response = await _begin(request, None)
    for event in events:
        await response.write(event)
        await asyncio.sleep(0)
    return response


@asynccontextmanager
async def toy_server(
    kind: Kind, model: Model, make: Callable[[Kind, Model], Toy] = Toy
) -> AsyncIterator[Toy]:
    """A running one."""
    toy = make(kind, model)
    app = web.Application(client_max_size=2**24)
    app.router.add_route("*", "/{path:.*}", toy.handle)
    async with running(app) as toy.base_url:
        yield toy


@asynccontextmanager
async def running(app: web.Application) -> AsyncIterator[str]:
    """Serve `app`; its base URL."""
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        await runner.setup()
        try:
            await web.SockSite(runner, listener).start()
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            await runner.cleanup()
