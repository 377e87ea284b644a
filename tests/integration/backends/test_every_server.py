"""Holds every kind of server to one contract: how it writes and how it scores.

To add a kind, describe it in a module of `tests/support/servers` and enter the description in
`SERVERS` of `every.py` there: all tests of this file and of `test_every_reader.py` then run over
it. What only one kind does is tested in that kind's own files.
"""

import math
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import orjson
import pytest

from proxy.backends.base import Scores
from proxy.errors import UpstreamFailed, UpstreamMalformed, UpstreamUnreachable
from tests.support.replay import CALL, Replay, cut, json_reply, pieces_of, replay, stream_reply
from tests.support.requests import codes
from tests.support.servers.contract import (
    EVERY_FIELD,
    Asked,
    Failure,
    Played,
    ScoringContract,
    Stream,
    WritingContract,
    drafts_of,
    write,
)
from tests.support.servers.every import SCORING, WRITING, over, over_cases
from tests.support.servers.litellm import OWN_WARNINGS

pytestmark = OWN_WARNINGS


# Writing.


@over(WRITING)
async def test_the_check_passes_where_the_server_is_and_fails_where_it_is_not_ready(
    up: Replay, server: WritingContract
) -> None:
    up.on("GET", server.health, json_reply(server.healthy), json_reply({"error": "loading"}, 503))
    async with server.writer(up) as writer:
        await writer.check()
        with pytest.raises(UpstreamFailed, match="loading"):
            await writer.check()


@over_cases(WRITING, lambda server: server.streams)
async def test_a_stream_is_its_text_in_pieces_and_its_end(
    up: Replay, server: WritingContract, case: Stream
) -> None:
    drafts = await drafts_of(up, server, case.body, asked=case.asked)
    pieces = pieces_of(drafts)
    assert "".join(pieces) == case.text
    assert case.num_pieces in {None, len(pieces)}
    assert case.pieces in {None, tuple(pieces)}
    assert [draft.end for draft in drafts] == [None] * (len(drafts) - 1) + [case.end]


@over_cases(WRITING, lambda server: server.streams)
async def test_the_recorded_streams_answer_what_is_still_asked(
    up: Replay, server: WritingContract, case: Stream
) -> None:
    await drafts_of(up, server, case.body, asked=case.asked)
    (body,) = up.bodies(server.path)
    assert case.request in (None, body)


@over_cases(WRITING, lambda server: server.streams)
async def test_the_drafts_are_the_same_however_the_bytes_are_cut(
    up: Replay, server: WritingContract, case: Stream
) -> None:
    whole = await drafts_of(up, server, case.body, asked=case.asked)
    for seed in range(5):
        assert await drafts_of(up, server, *cut(case.body, seed), asked=case.asked) == whole


@over_cases(WRITING, lambda server: server.streams)
async def test_the_drafts_are_the_same_when_every_byte_comes_alone(
    up: Replay, server: WritingContract, case: Stream
) -> None:
    whole = await drafts_of(up, server, case.body, asked=case.asked)
    alone = [case.body[i : i + 1] for i in range(len(case.body))]
    assert await drafts_of(up, server, *alone, asked=case.asked) == whole


@over_cases(WRITING, lambda server: {n: s for n, s in server.streams.items() if s.logprobs})
async def test_each_piece_brings_its_tokens_log_probability_where_asked_for(
    up: Replay, server: WritingContract, case: Stream
) -> None:
    assert case.logprobs is not None
    drafts = await drafts_of(up, server, case.body, asked=case.asked.asking(logprobs=True))
    told = [logprobs for draft in drafts for logprobs in draft.logprobs or ()]
    assert len(told) == len(pieces_of(drafts))
    for (got,), expected in zip(told, case.logprobs, strict=False):
        assert got == expected or (math.isnan(got) and math.isnan(expected))
    unasked = await drafts_of(up, server, case.body, asked=case.asked.asking(logprobs=False))
    assert all(draft.logprobs is None for draft in unasked)


@over_cases(WRITING, lambda server: server.cached)
async def test_cached_prompt_tokens_come_with_the_last_draft(
    up: Replay, server: WritingContract, case: tuple[bytes, tuple[int | None, ...]]
) -> None:
    body, num_cached = case
    drafts = await drafts_of(up, server, body)
    assert tuple(draft.num_cached_tokens for draft in drafts) == num_cached


@over(WRITING)
async def test_a_write_says_every_sampling_field(up: Replay, server: WritingContract) -> None:
    body = next(iter(server.streams.values())).body
    await drafts_of(up, server, body, asked=Asked(server.asked.context, EVERY_FIELD))
    assert up.bodies(server.path) == [server.sent]


@over(WRITING)
async def test_a_write_without_a_seed_names_none(up: Replay, server: WritingContract) -> None:
    await drafts_of(up, server, next(iter(server.streams.values())).body)
    assert b"seed" not in orjson.dumps(up.bodies(server.path))


@over(WRITING)
async def test_closing_a_write_cancels_it_at_the_server(
    up: Replay, server: WritingContract
) -> None:
    up.on("POST", server.path, stream_reply(server.begun, hold=True))
    async with server.writer(up) as writer:
        async with aclosing(write(writer, server.asked)) as writing:
            assert (await anext(writing)).pieces == server.first
        await up.left.wait()
    assert codes(up) == ["cancelled"]


# What may go wrong in a stream.


@over_cases(WRITING, lambda server: server.failures)
async def test_an_error_in_the_stream_is_told_by_its_message_and_code(
    up: Replay, server: WritingContract, case: Failure
) -> None:
    with pytest.raises(case.error, match=case.words) as caught:
        await drafts_of(up, server, case.body)
    assert type(caught.value) is case.error
    assert codes(up) == [case.error.code]


@pytest.mark.parametrize("began", [True, False])
@over_cases(WRITING, lambda server: server.breaks)
async def test_a_stream_that_ends_without_a_finish_is_unreachable(
    up: Replay, server: WritingContract, case: bytes, began: bool
) -> None:
    with pytest.raises(UpstreamUnreachable, match="broke off"):
        await drafts_of(up, server, server.begun * began + case)
    assert codes(up) == ["upstream_unreachable"]


@over(WRITING)
async def test_a_stream_whose_connection_drops_is_unreachable(
    up: Replay, server: WritingContract
) -> None:
    up.on("POST", server.path, stream_reply(server.begun, drop_after=1))
    async with server.writer(up) as writer:
        with pytest.raises(UpstreamUnreachable):
            async for _ in write(writer, server.asked):
                pass
    assert codes(up) == ["upstream_unreachable"]


@over_cases(WRITING, lambda server: server.odd_events)
async def test_an_event_of_another_shape_is_malformed(
    up: Replay, server: WritingContract, case: bytes
) -> None:
    with pytest.raises(UpstreamMalformed, match="a stream event is not what was asked for"):
        await drafts_of(up, server, b"data: " + case + b"\n\n")


# Scoring.


async def scores_of(up: Replay, server: ScoringContract, answer: Played) -> Scores:
    up.on("POST", server.path, answer)
    return await server.scorer(up).score(
        server.context(), server.num_new, server.top_k, CALL, entropy_known=False
    )


@over(SCORING)
async def test_values_and_entropies_are_those_of_the_recorded_log_probabilities(
    up: Replay, server: ScoringContract
) -> None:
    scores = await scores_of(up, server, server.recorded())
    steps, expected = scores.steps, server.steps()
    assert [s.value for s in steps] == pytest.approx([s.value for s in expected], rel=1e-9)
    assert [s.entropy for s in steps] == pytest.approx([s.entropy for s in expected], rel=1e-9)
    assert [s.num_tokens for s in steps] == [s.num_tokens for s in expected]
    assert tuple(s.value for s in steps) == server.known_values
    assert tuple(s.entropy for s in steps)[: len(server.known_entropies)] == server.known_entropies
    if (next_entropy := server.next_entropy()) is None:
        assert scores.next_entropy is None
    else:
        assert scores.next_entropy == pytest.approx(next_entropy, rel=1e-9)
    assert scores.num_tokens == sum(s.num_tokens for s in expected)
    assert scores.num_cached_tokens == server.num_cached


@over(SCORING)
async def test_only_the_new_steps_are_scored_and_counted(
    up: Replay, server: ScoringContract
) -> None:
    whole = await scores_of(up, server, server.recorded())
    async with replay() as other:
        other.on("POST", server.path, server.of_last_step())
        last = await server.scorer(other).score(
            server.context(), 1, server.top_k, CALL, entropy_known=False
        )
    assert last.steps == whole.steps[-1:]
    assert last.num_tokens == whole.steps[-1].num_tokens


@over_cases(SCORING, lambda server: server.impossible)
async def test_an_impossible_token_makes_the_value_zero(
    up: Replay, server: ScoringContract, case: Callable[[], Played]
) -> None:
    possible = await scores_of(up, server, server.recorded())
    scores = await scores_of(up, server, case())
    assert scores.steps[0] == possible.steps[0]
    assert possible.steps[1].value > 0.0
    assert scores.steps[1].value == 0.0


@over_cases(SCORING, lambda server: server.broken)
async def test_a_score_from_an_incomplete_answer_is_malformed(
    up: Replay, server: ScoringContract, case: Callable[[], Played]
) -> None:
    with pytest.raises(UpstreamMalformed):
        await scores_of(up, server, case())
    assert not UpstreamMalformed.retryable


@pytest.mark.parametrize(
    "payload",
    [{}, {"choices": []}, {"choices": None}, {"meta_info": None}, [], [{}], None, "text"],
)
@over(SCORING)
async def test_an_answer_of_another_shape_is_malformed(
    up: Replay, server: ScoringContract, payload: Any
) -> None:
    with pytest.raises(UpstreamMalformed):
        await scores_of(up, server, json_reply(payload))


@pytest.mark.parametrize("literal", [b"NaN", b"Infinity", b"-Infinity"])
@over(SCORING)
async def test_a_log_probability_that_no_json_can_hold_gives_no_score(
    up: Replay, server: ScoringContract, literal: bytes
) -> None:
    with pytest.raises((UpstreamMalformed, UpstreamFailed)):
        await scores_of(up, server, server.with_literal(literal))


@over(SCORING)
async def test_a_step_without_tokens_has_no_score(up: Replay, server: ScoringContract) -> None:
    up.on("POST", server.path, server.recorded())
    context = server.without_tokens()
    with pytest.raises(UpstreamMalformed):
        await server.scorer(up).score(
            context, len(context.steps), server.top_k, CALL, entropy_known=False
        )


@over(SCORING)
async def test_every_token_of_the_last_step_has_its_end_and_its_log_probability(
    up: Replay, server: ScoringContract
) -> None:
    server.token_answers(up)
    context = server.token_context()
    assert await server.scorer(up).token_logprobs(context, CALL) == server.tokens()
    assert up.bodies(server.path) == server.token_requests()


@over_cases(SCORING, lambda server: server.refusals)
async def test_an_error_is_the_same_for_writing_and_scoring(
    up: Replay, server: ScoringContract, case: Failure
) -> None:
    up.on("POST", server.path, json_reply(case.body, case.status))
    with pytest.raises(case.error):
        await scores_of(up, server, json_reply(case.body, case.status))
    (writing,) = [WRITING[kind] for kind, scoring in SCORING.items() if scoring is server]
    async with writing.writer(up) as writer:
        with pytest.raises(case.error):
            await anext(write(writer, writing.asked))
