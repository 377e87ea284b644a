"""Toy servers whose models have limits, and refuse in the servers' own words what exceeds them."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiohttp import web

from tests.support.toy_servers import Kind, Model, Toy, running

TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}: "
# Recorded from, or quoted by, the servers that tests/unit/backends/test_refusals.py names.
_WORDS = {
    "vllm": (
        "This model's maximum context length is {window} tokens. However, you requested {total}"
        " tokens ({prompt} in the messages, {asked} in the completion). Please reduce the length"
        " of the messages or completion."
    ),
    "sglang": (
        "Requested token count exceeds the model's maximum context length of {window} tokens. You"
        " requested a total of {total} tokens: {prompt} tokens from the input messages and {asked}"
        " tokens for the completion."
    ),
    "llamacpp": "request ({prompt} tokens) exceeds the available context size ({window} tokens)",
    "mute": "the prompt is too long",
}
_OUTPUT_WORDS = (
    "max_tokens is too large: {asked}. This model supports at most {most} completion tokens,"
    " whereas you provided {asked}."
)
_WORD = re.compile(r"\s*\S+\s*")


@dataclass(frozen=True, slots=True)
class Asked:
    """The tokens of a request: of its prompt, and of the answer that it asks for."""

    prompt: int
    answer: int


@dataclass
class Windowed(Toy):
    """A toy server with a window of `window` tokens; `tells` says whether it can be asked for it,
    `names` whether its refusals name it.
    """

    window: int = 0
    tells: bool = True
    names: bool = True
    asked: list[Asked] = field(default_factory=list)
    refused: list[Asked] = field(default_factory=list)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = orjson.loads(await request.read() or b"{}")
        if told := self._told(request.path):
            return web.Response(body=orjson.dumps(told))
        asked = self._asked(body)
        if asked is not None:
            self.asked.append(asked)
            # llama.cpp cuts an answer off where its window ends.
            answer = 1 if self.kind == "llamacpp" else asked.answer
            if asked.prompt + answer > self.window:
                self.refused.append(asked)
                return _refusal(self._words(asked))
        return await super().handle(request)

    def _told(self, path: str) -> dict[str, Any] | None:
        if path == "/health":
            return {"status": "ok"}
        if not self.tells:
            return None
        if path == "/v1/models":
            return {"data": [{"id": "toy", "max_model_len": self.window}]}
        if path == "/server_info":
            # As the real one: six tokens less than the window.
            return {"max_req_input_len": self.window - 6}
        if path == "/props":
            return {"total_slots": 8, "default_generation_settings": {"n_ctx": self.window}}
        return None

    def _asked(self, body: dict[str, Any]) -> Asked | None:
        ids = body.get("input_ids", body.get("prompt"))
        if not isinstance(ids, list) or not isinstance(ids[0], int):
            return None
        sampled = body.get("sampling_params", body)
        fields = ("max_tokens", "max_new_tokens", "n_predict")
        return Asked(len(ids), next(sampled[name] for name in fields if name in sampled))

    def _words(self, asked: Asked) -> str:
        total = asked.prompt + asked.answer
        words = _WORDS[self.kind if self.names else "mute"]
        return words.format(
            window=self.window, total=total, prompt=asked.prompt, asked=asked.answer
        )


def windowed(window: int, **how: Any) -> Any:
    """Make such toys, for `toy_server`."""
    return lambda kind, model: Windowed(kind, model, window=window, **how)


def _refusal(message: str) -> web.Response:
    error = {"message": message, "type": "invalid_request_error", "code": 400}
    return web.Response(status=400, body=orjson.dumps({"error": error}))


@dataclass(slots=True)
class TextServer:
    """OpenAI's two routes for one model, which writes numbered steps up to its limit; it marks
    every step with `mark`. Its tokens are words, which the proxy's tokenizer cuts otherwise.
    """

    window: int = 10**9
    most_output: int = 10**9
    tells: bool = True
    mark: str = "8"
    num_steps: int = 3
    base_url: str = ""
    asked: list[Asked] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    async def models(self, _: web.Request) -> web.Response:
        listed: dict[str, Any] = {"id": "toy"}
        if self.tells:
            listed["context_length"] = self.window
        return web.Response(body=orjson.dumps({"object": "list", "data": [listed]}))

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = orjson.loads(await request.read())
        is_chat = request.path.endswith("/chat/completions")
        prompt = "".join(m["content"] for m in body["messages"]) if is_chat else body["prompt"]
        asked = Asked(len(_WORD.findall(prompt)) + 4, body["max_tokens"])
        if refusal := self._words(asked):
            self.refused.append(refusal)
            return _refusal(refusal)
        if not body.get("stream"):
            return web.Response(body=orjson.dumps(self._whole(self.mark, is_chat=is_chat)))
        self.asked.append(asked)
        text = "".join(
            f"Step {k} is right, because all of the steps before it are right.\n\n"
            for k in range(self.num_steps)
        )
        words = _WORD.findall(text)
        end = "length" if len(words) > asked.answer else "stop"
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for word in words[: asked.answer]:
            await response.write(_event(word, None, is_chat=is_chat))
        await response.write(_event("", end, is_chat=is_chat))
        await response.write(b"data: [DONE]\n\n")
        return response

    def _words(self, asked: Asked) -> str:
        if asked.answer > self.most_output:
            return _OUTPUT_WORDS.format(asked=asked.answer, most=self.most_output)
        total = asked.prompt + asked.answer
        if total <= self.window:
            return ""
        return _WORDS["vllm"].format(
            window=self.window, total=total, prompt=asked.prompt, asked=asked.answer
        )

    def _whole(self, text: str, *, is_chat: bool) -> dict[str, Any]:
        said = {"message": {"role": "assistant", "content": text}} if is_chat else {"text": text}
        choice = {"index": 0, "finish_reason": "stop", **said}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        kind = "chat.completion" if is_chat else "text_completion"
        head = {"id": "x", "object": kind, "created": 1, "model": "toy"}
        return {**head, "choices": [choice], "usage": usage}


def _event(text: str, end: str | None, *, is_chat: bool) -> bytes:
    said = {"delta": {"role": "assistant", "content": text}} if is_chat else {"text": text}
    kind = "chat.completion.chunk" if is_chat else "text_completion"
    row = {"id": "x", "object": kind, "created": 1, "model": "toy"}
    choice = {"index": 0, "finish_reason": end, **said}
    return b"data: " + orjson.dumps({**row, "choices": [choice]}) + b"\n\n"


@asynccontextmanager
async def text_server(**how: Any) -> AsyncIterator[TextServer]:
    """A running one."""
    server = TextServer(**how)
    app = web.Application()
    for path in ("/v1/completions", "/v1/chat/completions"):
        app.router.add_post(path, server.answer)
    app.router.add_get("/v1/models", server.models)
    async with running(app) as server.base_url:
        yield server


def token_upstream(toy: Toy, **keys: Any) -> dict[str, Any]:
    """The configuration of a toy that takes token ids."""
    named = {"kind": toy.kind, "base_url": toy.base_url, "model": "toy", "reasoning": "none"}
    return {**named, "chat_template": TEMPLATE, **keys}


def text_upstream(kind: str, server: TextServer, **keys: Any) -> dict[str, Any]:
    """The configuration of a server that takes text."""
    once = {"tokenizer": "tiktoken:o200k_base", "retries": {"attempts": 1}}
    if kind == "litellm":
        hosted = {"model": "openai/toy", "api_key": "k", "continuation": "instruct"}
        return {"kind": kind, "base_url": f"{server.base_url}/v1", **hosted, **once, **keys}
    own = {"model": "toy", "chat_template": TEMPLATE, "reasoning": "none"}
    return {"kind": kind, "base_url": server.base_url, **own, **once, **keys}


KINDS: tuple[Kind, ...] = ("vllm", "sglang", "llamacpp")
MODEL = Model(["So", " the", " sum", " is", " \u221a2", "7"], salt=1)
