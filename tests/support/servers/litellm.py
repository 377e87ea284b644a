"""Describes hosted chat models, spoken to through litellm, to the contract."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import Any, Final

import pytest

from proxy.backends.base import Context, Draft, Message, Question, Sampling, Segment, Writer
from proxy.backends.servers.litellm import HostedModel, LiteLLM
from proxy.backends.servers.litellm_library import load_library
from proxy.backends.transport.calls import NO_TIMEOUTS, Calls, Timeouts
from proxy.backends.transport.retry import NO_RETRIES, RetryPolicy
from proxy.core.types import FinishReason
from proxy.errors import UpstreamFailed
from tests.support.replay import CALL, GREEDY, Recording, Replay, Reply
from tests.support.scripted import ScriptedBackend
from tests.support.servers import contract

RECORDED: Final = Recording("vllm-0.32.0")
CHAT: Final = "/v1/chat/completions"
QUESTION: Final = Question((Message("user", "What is 12 + 30? Answer in one sentence."),))
HOSTED_VLLM: Final = "hosted_vllm/smollm2"
OPENAI: Final = "openai/smollm2"
NEUTRAL: Final[dict[str, Any]] = {
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
}
"""The values that change nothing, which the recorded requests to vLLM left out."""
DONE: Final = b"data: [DONE]\n\n"
OWN_WARNINGS: Final = [
    pytest.mark.filterwarnings("ignore:Accessing the 'model_(computed_)?fields'"),
    pytest.mark.filterwarnings("ignore:.*`ReadOnly` qualifier"),
]
"""Marks that ignore what litellm and today's pydantic say of each other."""


class Hosted:
    """Makes hosted models of the scripted server, and closes litellm's connections."""

    def __init__(self, up: Replay) -> None:
        self._up = up
        self._library = load_library()
        self._made: list[LiteLLM] = []

    def __call__(
        self,
        model: str = HOSTED_VLLM,
        retry: RetryPolicy = NO_RETRIES,
        *,
        base_url: str | None = None,
        lists_models: bool = True,
        timeouts: Timeouts = NO_TIMEOUTS,
        **how: Any,
    ) -> LiteLLM:
        up = self._up
        calls = Calls(
            "up",
            lambda *event: up.observed.append(event),
            retry,
            lambda *event: up.retried.append(event),
            timeouts,
        )
        hosted = HostedModel(model, "secret", base_url or f"{up.client.base_url}/v1", **how)
        models = up.client if lists_models else None
        self._made.append(LiteLLM(self._library, calls, models, hosted, ScriptedBackend()))
        return self._made[-1]

    async def aclose(self) -> None:
        for backend in self._made:
            await backend.aclose()


def connections() -> dict[str, Any]:
    """The clients that litellm keeps."""
    found: dict[str, Any] = load_library().in_memory_llm_clients_cache.cache_dict
    return dict(found)


def context(*steps: str, question: Question = QUESTION) -> Context:
    """The question and steps of an answer, one token a character."""
    segments = [Segment(text, tuple(map(ord, text))) for text in steps]
    return Context(Segment("", (1,)), segments, question=question)


async def drafts_of(
    backend: LiteLLM, written: Context, sampling: Sampling = GREEDY, max_tokens: int = 60
) -> list[Draft]:
    return [draft async for draft in backend.write(written, sampling, max_tokens, CALL)]


def failing(status: int, message: str = "sorry", **headers: str) -> Reply:
    body = b'{"error":{"message":"%s","type":"t","code":%d}}' % (message.encode(), status)
    return Reply((body,), status, {"content-type": "application/json", **headers})


def chunk(delta: str, finish: str = "null") -> bytes:
    """A stream's event."""
    head = '"id":"c","object":"chat.completion.chunk","created":1,"model":"m"'
    choice = f'{{"index":0,"delta":{delta},"finish_reason":{finish}}}'
    return f'data: {{{head},"choices":[{choice}]}}\n\n'.encode()


_STREAMS: dict[str, tuple[Sampling, int, str, FinishReason]] = {
    "chat_stop": (GREEDY, 60, "12 + 30 = 32.", "stop"),
    "chat_stop_string": (Sampling(0.0, stop=("32",)), 60, "12 + 30 = ", "stop"),
    "chat_length": (Sampling(0.7, 0.9, 7), 8, "I'm sorry for your pain, but", "length"),
}


def _stream(name: str, more: dict[str, Any]) -> contract.Stream:
    sampling, max_tokens, text, end = _STREAMS[name]
    return contract.Stream(
        body=RECORDED.body(name),
        asked=contract.Asked(context(), sampling, max_tokens),
        text=text,
        end=end,
        num_pieces=len(text),  # the reader counts a character as a token
        request=more | RECORDED.request(name),
    )


def _num_texts(name: str) -> int:
    deltas = [e["choices"][0]["delta"] for e in RECORDED.events(name) if e["choices"]]
    return sum(1 for delta in deltas if delta.get("content"))


def _writer(model: str) -> Callable[[Replay], AbstractAsyncContextManager[Writer]]:
    @asynccontextmanager
    async def writer(up: Replay) -> AsyncIterator[Writer]:
        async with aclosing(Hosted(up)(model)) as hosted:
            yield hosted

    return writer


def _server(kind: str, model: str, breaks: dict[str, bytes]) -> contract.Server:
    more = NEUTRAL if model == HOSTED_VLLM else {}
    writing = contract.WritingContract(
        path=CHAT,
        writer=_writer(model),
        asked=contract.Asked(context()),
        streams={name: _stream(name, more) for name in _STREAMS},
        cached={name: (RECORDED.body(name), (*[None] * _num_texts(name), 0)) for name in _STREAMS},
        sent={
            "model": "smollm2",
            "messages": QUESTION.wire_messages(),
            **more,
            **contract.COMPLETION_FIELDS,
        },
        begun=chunk('{"content":"12 "}'),
        first=("", "12", " "),
        breaks=breaks | {"half an event": b'data: {"id":"c","choi'},
        failures={
            "a dead engine": contract.Failure(
                chunk('{"content":"12 "}')
                + b'data: {"error":{"message":"EngineDead","type":"InternalServerError",'
                + b'"code":500}}\n\n'
                + DONE,
                UpstreamFailed,
                "EngineDead",
            )
        },
        odd_events={},
        health="/models",
        healthy={"data": []},
    )
    return contract.Server(kind=kind, writing=writing)


# litellm's provider for vLLM takes [DONE] for an end.
_NOT_DONE = {name: rest for name, rest in contract.BREAKS.items() if name != "done"}
SERVERS: Final = (
    _server("litellm-vllm", HOSTED_VLLM, _NOT_DONE),
    _server("litellm-openai", OPENAI, contract.BREAKS),
)
