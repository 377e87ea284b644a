"""Asks a mocked proxy through the client."""

from collections.abc import Callable, Coroutine
from typing import Any

import httpx
import orjson
import pytest

from synth_client.asking.client import SynthClient
from synth_client.asking.errors import SynthesisError
from synth_client.questions.question import Question, Synthesis, Unit, units_of
from trajectory_records.record import Message, Record

QUESTION = Question(
    id="apples",
    messages=(
        Message(role="system", content="Think in steps."),
        Message(role="user", content="How many apples are in 12 bags [of 3]?"),
    ),
    answer="36",
)
SYNTHESIS = Synthesis(
    model="motab/smol+big", params={"base_threshold": 0.3, "stitch": "clean"}, temperature=0.6
)
Handler = Callable[[httpx.Request], httpx.Response]
AsyncHandler = Callable[[httpx.Request], Coroutine[None, None, httpx.Response]]


def answer_of(fields: dict[str, Any]) -> dict[str, Any]:
    """The proxy's answer, from which the record `fields` should come."""
    traced = ("method", "breach", "bifurcation", "spans", "steps", "params", "models", "scoring")
    only_there = {k: fields[k] for k in ("quality", "scoring_fallbacks", "breaches") if k in fields}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1770000000,
        "model": "motab/smol+big",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": fields["output"], "refusal": None},
                "logprobs": None,
                "finish_reason": fields["finish_reason"],
                "motab": {name: fields[name] for name in traced} | only_there,
            }
        ],
        "usage": {**fields["usage"], "prompt_tokens_details": {"cached_tokens": 0}},
    }


def unit_of(synthesis: Synthesis, question: Question = QUESTION, sample: int = 0) -> Unit:
    return list(units_of(question, synthesis, sample + 1))[sample]


async def ask(handler: Handler | AsyncHandler, question: Question = QUESTION, **how: Any) -> Record:
    transport = httpx.MockTransport(handler)
    synthesis = how.pop("synthesis", SYNTHESIS)
    unit = unit_of(synthesis, question, how.pop("sample", 0))
    async with SynthClient("http://proxy/v1", synthesis, transport=transport, **how) as client:
        return await client.synthesise(unit)


async def refused(handler: Handler) -> SynthesisError:
    with pytest.raises(SynthesisError) as caught:
        await ask(handler)
    return caught.value


def answering(payload: Any, status: int = 200) -> Handler:
    content = payload if isinstance(payload, bytes) else orjson.dumps(payload)
    return lambda request: httpx.Response(status, content=content)


PLAIN = Synthesis(model="m", plain=True)


def plain_answer(**message: Any) -> dict[str, Any]:
    return {
        "model": "m-2026",
        "choices": [{"message": {"role": "assistant", **message}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8, "queue_time": 1},
    }
