"""Checks what SGLang 0.5.23 itself answers at the end of a window of 512 tokens."""

from collections.abc import AsyncGenerator

import pytest

from proxy.backends.base import Context, Draft, Segment
from proxy.errors import ContextExceeded
from tests.support.replay import CALL, GREEDY, Replay, pieces_of, stream_reply
from tests.support.servers import sglang


def writing(up: Replay, recorded: str) -> AsyncGenerator[Draft]:
    """Make the recorded request, and play its answer back."""
    request = sglang.RECORDED.request(recorded)
    up.on("POST", sglang.GENERATE, stream_reply(sglang.RECORDED.body(recorded)))
    context = Context(Segment("", tuple(request["input_ids"])))
    num_tokens = request["sampling_params"]["max_new_tokens"]
    return sglang.backend(up).write(context, GREEDY, num_tokens, CALL)


async def test_fewer_tokens_than_were_asked_for_end_with_length(up: Replay) -> None:
    drafts = [draft async for draft in writing(up, "tiny_window_end")]
    (request,) = up.bodies(sglang.GENERATE)
    assert request == sglang.RECORDED.request("tiny_window_end")
    assert request["sampling_params"]["max_new_tokens"] == 12
    assert pieces_of(drafts) == ["The"] * 10
    assert drafts[-1].end == "length"


async def test_the_token_that_comes_with_a_late_refusal_is_no_text(up: Replay) -> None:
    (event,) = sglang.RECORDED.events("tiny_input_length")
    assert event["text"]
    assert event["meta_info"]["prompt_tokens"] == 1
    with pytest.raises(ContextExceeded, match="508 tokens"):
        await anext(writing(up, "tiny_input_length"))
