"""Checks what vLLM's backend makes of a stream beyond the contract."""

from typing import Any

import pytest

from proxy.backends.base import Sampling
from proxy.errors import MotabError, UpstreamError, UpstreamFailed, UpstreamMalformed
from tests.support.replay import Replay, pieces_of
from tests.support.servers import vllm
from tests.support.servers.contract import Asked, drafts_of


async def test_special_tokens_are_text_where_they_are_asked_for(up: Replay) -> None:
    drafts = await drafts_of(
        up,
        vllm.WRITING,
        vllm.RECORDED.body("interval1_special_shown"),
        asked=Asked(vllm.ASKED.context, Sampling(temperature=0.0, special_tokens=True)),
    )
    assert pieces_of(drafts) == ["<|im_start|>"] * 6
    (body,) = up.bodies(vllm.COMPLETIONS)
    recorded = vllm.RECORDED.request("interval1_special_shown")
    for name in ("skip_special_tokens", "spaces_between_special_tokens"):
        assert body[name] is recorded[name] is False


@pytest.mark.parametrize("name", ["length", "emoji", "emoji_cut", "first_eos"])
async def test_each_piece_is_its_own_token_s_text_even_where_a_chunk_has_several(
    up: Replay, name: str
) -> None:
    choices = [c for e in vllm.RECORDED.events(f"interval1_{name}") for c in e["choices"]]
    tokens = [token for choice in choices for token in choice["logprobs"]["tokens"]]
    pieces = pieces_of(await drafts_of(up, vllm.WRITING, vllm.RECORDED.body(f"interval8_{name}")))
    assert pieces == tokens[: len(pieces)]
    assert len([piece for piece in pieces if piece]) > 1 or name == "emoji_cut"


async def test_a_character_comes_whole_with_the_token_that_completes_it(up: Replay) -> None:
    pieces = pieces_of(await drafts_of(up, vllm.WRITING, vllm.RECORDED.body("interval8_emoji")))
    assert pieces == ["", "", "🎉", "", "", "🌍"] * 2 + ["", "", "🎉", ""]


async def test_text_arrives_as_the_server_sends_it(up: Replay) -> None:
    drafts = await drafts_of(up, vllm.WRITING, vllm.RECORDED.body("interval8_length"))
    assert [len(draft.pieces) for draft in drafts] == [1, 8, 8, 7, 0]


@pytest.mark.parametrize("name", ["interval1_second_eos", "interval8_second_eos"])
async def test_every_end_token_is_no_text(up: Replay, name: str) -> None:
    pieces = pieces_of(await drafts_of(up, vllm.WRITING, vllm.RECORDED.body(name)))
    assert pieces == ["1", ".", " Bo", "il", " the"]


async def test_a_server_that_does_not_tell_of_its_cache_is_not_taken_for_an_empty_one(
    up: Replay,
) -> None:
    def untold(events: list[Any]) -> None:
        del events[-1]["usage"]["prompt_tokens_details"]

    drafts = await drafts_of(up, vllm.WRITING, vllm.RECORDED.edited("interval1_eos", untold))
    assert (drafts[-1].end, drafts[-1].num_cached_tokens) == ("stop", None)


async def test_chunks_without_the_token_ids_asked_for_are_malformed(up: Replay) -> None:
    with pytest.raises(UpstreamMalformed, match="is not what was asked for"):
        await drafts_of(up, vllm.WRITING, vllm.RECORDED.body("nothing_asked_for"))


async def test_a_chunk_with_other_numbers_of_ids_and_of_tokens_is_malformed(up: Replay) -> None:
    def lose_an_id(events: list[Any]) -> None:
        events[1]["choices"][0]["token_ids"].pop()

    with pytest.raises(UpstreamMalformed, match="7 token_ids, but 8 tokens"):
        await drafts_of(up, vllm.WRITING, vllm.RECORDED.edited("interval8_length", lose_an_id))


@pytest.mark.parametrize(
    ("reason", "error"),
    [("abort", UpstreamFailed), ("error", UpstreamFailed)],
)
async def test_a_failed_server_gives_no_end(
    up: Replay, reason: str, error: type[MotabError]
) -> None:
    def ended(events: list[Any]) -> None:
        events[-2]["choices"][0]["finish_reason"] = reason

    with pytest.raises(error, match=reason):
        await drafts_of(up, vllm.WRITING, vllm.RECORDED.edited("interval1_length", ended))


async def test_a_usage_event_without_a_finish_before_it_is_no_end(up: Replay) -> None:
    def unfinished(events: list[Any]) -> None:
        events[-2]["choices"][0]["finish_reason"] = None

    with pytest.raises(UpstreamError):
        await drafts_of(up, vllm.WRITING, vllm.RECORDED.edited("interval1_length", unfinished))
