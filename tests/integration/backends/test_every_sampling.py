"""Holds servers to the sampling values: each value is sent by the server's own name for it."""

from types import MappingProxyType
from typing import Any, Final

import pytest

from proxy.backends.base import Sampling
from tests.support.replay import Replay
from tests.support.servers.contract import Asked, WritingContract, drafts_of
from tests.support.servers.every import WRITING

VALUES: Final = Sampling(
    0.7,
    0.9,
    top_k=20,
    min_p=0.05,
    presence_penalty=0.5,
    frequency_penalty=-0.5,
    repetition_penalty=1.25,
)
STANDARD: Final = {
    "temperature": 0.7,
    "top_p": 0.9,
    "presence_penalty": 0.5,
    "frequency_penalty": -0.5,
}
EVERY: Final = {**STANDARD, "top_k": 20, "min_p": 0.05, "repetition_penalty": 1.25}
CHANGED: Final = MappingProxyType(
    {
        "vllm": EVERY,
        "sglang": EVERY,
        "llamacpp": {
            **STANDARD,
            "top_k": 20,
            "min_p": 0.05,
            "repeat_penalty": 1.25,
            "repeat_last_n": 27,  # three tokens of the prompt, and 24 at most
        },
        "openai": STANDARD,
    }
)
NEUTRAL: Final[dict[str, Any]] = {
    "top_p": 1.0,
    "min_p": 0.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
UNCHANGED: Final = MappingProxyType(
    {
        "vllm": {**NEUTRAL, "top_k": 0, "repetition_penalty": 1.0},
        "sglang": {**NEUTRAL, "top_k": -1, "repetition_penalty": 1.0},
        "llamacpp": {**NEUTRAL, "top_k": 0, "repeat_penalty": 1.0},
        "openai": {name: value for name, value in NEUTRAL.items() if name != "min_p"},
    }
)
NAMES: Final = {
    "top_k",
    "min_p",
    "repetition_penalty",
    "repeat_penalty",
    "repeat_last_n",
    *STANDARD,
}


async def sent(up: Replay, server: WritingContract, sampling: Sampling) -> dict[str, Any]:
    """The sampling fields of the request for a write."""
    body = next(iter(server.streams.values())).body
    await drafts_of(up, server, body, asked=Asked(server.asked.context, sampling))
    (request,) = up.bodies(server.path)
    fields = request.get("sampling_params", request)
    return {name: value for name, value in fields.items() if name in NAMES}


@pytest.mark.parametrize("kind", CHANGED)
async def test_a_write_has_every_value_that_the_server_knows(up: Replay, kind: str) -> None:
    assert await sent(up, WRITING[kind], VALUES) == CHANGED[kind]


@pytest.mark.parametrize("top_k", [0, -1])
@pytest.mark.parametrize("kind", UNCHANGED)
async def test_values_that_change_nothing_are_sent_too(up: Replay, kind: str, top_k: int) -> None:
    found = await sent(up, WRITING[kind], Sampling(0.7, top_k=top_k))
    assert found == {**UNCHANGED[kind], "temperature": 0.7}
