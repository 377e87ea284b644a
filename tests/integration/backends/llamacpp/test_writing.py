"""Checks what llama.cpp's backend makes of a stream beyond the contract."""

import pytest

from proxy.backends.base import Sampling
from tests.support.replay import CALL, Replay, pieces_of, stream_reply
from tests.support.servers import llamacpp
from tests.support.servers.contract import drafts_of


@pytest.mark.parametrize("name", llamacpp.WRITING.streams)
async def test_there_are_as_many_pieces_as_the_server_counts_without_an_end_token(
    up: Replay, name: str
) -> None:
    pieces = pieces_of(await drafts_of(up, llamacpp.WRITING, llamacpp.RECORDED.body(name)))
    num_tokens = llamacpp.RECORDED.events(name)[-1]["tokens_predicted"]
    assert len(pieces) == num_tokens - (name in llamacpp.ENDED)


@pytest.mark.parametrize(("seed", "sent"), [(None, None), (7, 7), (2**63 - 1, 2**31 - 1)])
async def test_a_seed_is_sent_as_the_server_can_hold_it(
    up: Replay, seed: int | None, sent: int | None
) -> None:
    up.on("POST", llamacpp.COMPLETION, stream_reply(llamacpp.RECORDED.body("stream_sampled")))
    async for _ in llamacpp.backend(up).write(
        llamacpp.ASKED.context, Sampling(0.7, seed=seed), 24, CALL
    ):
        pass
    assert up.bodies(llamacpp.COMPLETION)[0].get("seed") == sent


@pytest.mark.parametrize("stop_type", ["none", "", None])
async def test_an_unknown_stop_type_ends_the_text_all_the_same(
    up: Replay, stop_type: str | None
) -> None:
    body = llamacpp.RECORDED.edited(
        "stream_limit", lambda events: events[-1].update(stop_type=stop_type)
    )
    known = await drafts_of(up, llamacpp.WRITING, llamacpp.RECORDED.body("stream_limit"))
    drafts = await drafts_of(up, llamacpp.WRITING, body)
    assert pieces_of(drafts) == pieces_of(known)
    assert drafts[-1].end == "stop"


async def test_a_token_that_recurs_has_one_string(up: Replay) -> None:
    drafts = await drafts_of(up, llamacpp.WRITING, llamacpp.RECORDED.body("stream_limit"))
    again = await drafts_of(up, llamacpp.WRITING, llamacpp.RECORDED.body("stream_limit"))
    strings = [p for p in pieces_of(drafts) if len(p) > 1]  # shorter strings are shared anyway
    others = [p for p in pieces_of(again) if len(p) > 1]
    assert strings
    assert all(one is other for one, other in zip(strings, others, strict=True))
