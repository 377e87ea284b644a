"""Checks what SGLang's backend makes of a stream beyond the contract."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from proxy.backends.base import Sampling
from proxy.errors import UpstreamMalformed
from tests.support.replay import Replay, pieces_of, stream_reply
from tests.support.servers import sglang
from tests.support.servers.contract import drafts_of, write


async def test_special_tokens_are_written_out_where_they_are_asked_for(up: Replay) -> None:
    up.on("POST", sglang.GENERATE, stream_reply(sglang.RECORDED.body("delta_special_shown")))
    asked = sglang.asked_for("delta_special_shown")
    shown = replace(asked, sampling=Sampling(0.0, special_tokens=True))
    drafts = [draft async for draft in write(sglang.backend(up), shown)]
    assert pieces_of(drafts) == ["\n", "<|im_start|>", "ass", "istant", "\n"]
    assert up.bodies(sglang.GENERATE) == [sglang.RECORDED.request("delta_special_shown")]


@pytest.mark.parametrize("name", sglang.STREAMS)
async def test_both_kinds_of_stream_give_the_same_drafts(up: Replay, name: str) -> None:
    asked = sglang.WRITING.streams[f"delta_{name}"].asked
    cumulative, delta = [
        await drafts_of(up, sglang.WRITING, sglang.RECORDED.body(f"{mode}_{name}"), asked=asked)
        for mode in ("cumulative", "delta")
    ]
    assert delta == cumulative


async def test_events_that_the_server_drops_for_a_later_one_lose_nothing(up: Replay) -> None:
    # A busy server sends only the last of the cumulative events that wait.
    def drop(events: list[Any]) -> None:
        del events[2:7]

    drafts = await drafts_of(up, sglang.WRITING, sglang.RECORDED.edited("cumulative_length", drop))
    assert pieces_of(drafts) == ["So", " ", "", "", "", "", "", "🚀 é 12"]


async def test_a_last_event_without_a_new_token_is_an_end(up: Replay) -> None:
    def nothing_new(events: list[Any]) -> None:
        last = events[-1]
        meta = last["meta_info"]
        meta["completion_tokens"] -= 1
        last["text"], last["output_ids"], meta["output_token_logprobs"] = "", [], []
        meta["finish_reason"] = {"type": "stop", "matched": None}

    drafts = await drafts_of(
        up, sglang.WRITING, sglang.RECORDED.edited("delta_length", nothing_new)
    )
    assert pieces_of(drafts) == [*sglang.STREAMS["length"][0][:-1]]
    assert drafts[-1].end == "stop"


def repeat_all(events: list[Any]) -> None:
    """Make the fourth of the deltas an event that repeats the text before it."""
    fourth, so_far = events[3], events[:4]
    rows = [row for e in so_far for row in e["meta_info"]["output_token_logprobs"]]
    fourth["text"] = "".join(e["text"] for e in so_far)
    fourth["output_ids"] = [token for e in so_far for token in e["output_ids"]]
    fourth["meta_info"]["output_token_logprobs"] = rows


BROKEN_STREAMS: dict[str, tuple[str, Callable[[list[Any]], object]]] = {
    "a delta is lost": ("delta_length", lambda e: e.pop(3)),
    "a delta came twice": ("delta_length", lambda e: e.insert(3, e[3])),
    "all is repeated among deltas": ("delta_length", repeat_all),
    "a cumulative text changed": ("cumulative_length", lambda e: e[3].update(text="Xo 🚀")),
    "no token strings": ("delta_length", lambda e: e[1]["meta_info"].pop("output_token_logprobs")),
    "too few token strings": (
        "cumulative_length",
        lambda e: e[4]["meta_info"]["output_token_logprobs"].pop(),
    ),
    "no token ids": ("delta_length", lambda e: e[1].pop("output_ids")),
    "no text": ("delta_length", lambda e: e[1].pop("text")),
    "a null text": ("delta_length", lambda e: e[1].update(text=None)),
    "a null cumulative text": ("cumulative_length", lambda e: e[1].update(text=None)),
    "null token strings": (
        "delta_length_interval4",
        lambda e: [t.__setitem__(2, None) for t in e[1]["meta_info"]["output_token_logprobs"]],
    ),
    "no count": ("delta_length", lambda e: e[1]["meta_info"].pop("completion_tokens")),
    "no finish_reason": ("delta_length", lambda e: e[1]["meta_info"].pop("finish_reason")),
    "a cut prompt": ("delta_length", lambda e: e[0]["meta_info"].update(prompt_tokens=2)),
    # So SGLang ends a request whose logits are NaN.
    "NaN in the model": (
        "delta_length",
        lambda e: e[-1]["meta_info"].update(
            finish_reason={"type": "stop", "matched": "NaN happened"}
        ),
    ),
}


@pytest.mark.parametrize("broken", BROKEN_STREAMS)
async def test_a_stream_in_which_something_is_missing_is_malformed(up: Replay, broken: str) -> None:
    name, edit = BROKEN_STREAMS[broken]
    with pytest.raises(UpstreamMalformed, match="a stream event is not what was asked for"):
        await drafts_of(up, sglang.WRITING, sglang.RECORDED.edited(name, edit))
