"""Checks from where a broken stream is resumed, and what of its answer is handed on."""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace

import pytest

from proxy.backends.base import Call, Context, Draft, Sampling, Segment
from proxy.backends.transport.resume import ResumingWriter
from proxy.backends.transport.retry import NO_RETRIES
from proxy.errors import (
    ContextExceeded,
    MotabError,
    UpstreamFailed,
    UpstreamInterrupted,
    UpstreamMalformed,
    UpstreamUnreachable,
)
from tests.support.resuming import (
    BROKEN,
    END,
    FREE,
    GREEDY,
    PROMPT,
    QUICK,
    SEEDED,
    Item,
    Scene,
    ScriptedWriter,
    spelt,
    unspelt,
)


@pytest.mark.parametrize("sampling", [GREEDY, FREE, Sampling(0.0, seed=5)])
async def test_a_break_is_resumed_after_the_ids_that_came_with_the_tokens_left(
    scene: Scene, sampling: Sampling
) -> None:
    await scene.drafts([spelt("ab"), spelt("c"), BROKEN], [spelt("d"), END], sampling=sampling)
    assert scene.text == "abcd"
    assert scene.asked == [("", 20), ("abc", 17)]
    assert scene.retried == ["upstream_unreachable"]
    assert scene.out[-1].end == "stop"


async def test_with_a_seed_it_is_written_again_from_the_start_and_told_once(scene: Scene) -> None:
    again = [spelt("a"), spelt("bcd"), END]
    await scene.drafts([spelt("ab"), spelt("c"), BROKEN], again, sampling=SEEDED)
    assert scene.text == "abcd"
    assert scene.asked == [("", 20), ("", 20)]
    assert [draft.pieces for draft in scene.out] == [("a", "b"), ("c",), ("d",), ()]


@pytest.mark.parametrize("sampling", [Sampling(0.0, min_p=0.1), Sampling(0.7, seed=5)])
async def test_with_penalties_it_is_written_again_from_the_start(
    scene: Scene, sampling: Sampling
) -> None:
    sampling = replace(sampling, frequency_penalty=0.5)
    again = [spelt("a"), spelt("bcd"), END]
    await scene.drafts([spelt("ab"), spelt("c"), BROKEN], again, sampling=sampling)
    assert scene.text == "abcd"
    assert scene.asked == [("", 20), ("", 20)]


async def test_with_penalties_and_no_seed_it_cannot_be_resumed(scene: Scene) -> None:
    sampling = Sampling(0.7, repetition_penalty=1.1)
    with pytest.raises(UpstreamInterrupted, match="its penalties count tokens from its start"):
        await scene.drafts([spelt("ab"), BROKEN], [spelt("abc"), END], sampling=sampling)
    assert scene.text == "ab"


@pytest.mark.parametrize("again", [["abX"], ["a", "X"], ["ab"], ["abX", "d"]])
async def test_a_seeded_text_that_comes_out_different_is_not_spliced(
    scene: Scene, again: list[str]
) -> None:
    scripts: list[Sequence[Item]] = [[spelt("abc"), BROKEN], [*map(spelt, again), END]]
    with pytest.raises(UpstreamInterrupted, match=r"written again.*it broke"):
        await scene.drafts(*scripts, sampling=SEEDED)
    assert scene.text == "abc"
    assert len(scene.asked) == 2


async def test_greedy_text_of_unknown_ids_is_repeated_from_the_last_known_one(
    scene: Scene,
) -> None:
    first = [spelt("ab"), unspelt("", "é"), unspelt("f"), BROKEN]
    again = [unspelt("", "é"), unspelt("f", "g"), END]
    await scene.drafts(first, again)
    assert scene.text == "abéfg"
    assert scene.asked == [("", 20), ("ab", 18)]


async def test_ids_that_come_later_make_the_text_resumable_again(scene: Scene) -> None:
    first = [unspelt("é"), Draft(("f",), token_ids=(233, 102)), BROKEN]
    await scene.drafts(first, [spelt("g"), END], sampling=FREE)
    assert scene.text == "éfg"
    assert scene.asked == [("", 20), ("éf", 18)]


async def test_freely_drawn_text_of_unknown_ids_cannot_be_resumed(scene: Scene) -> None:
    with pytest.raises(UpstreamInterrupted, match=r"after 3 tokens.*ids.*it broke"):
        await scene.drafts([spelt("ab"), unspelt("é"), BROKEN], [END], sampling=FREE)
    assert scene.text == "abé"
    assert len(scene.asked) == 1
    assert scene.retried == []


@pytest.mark.parametrize("sampling", [GREEDY, FREE, SEEDED])
async def test_a_break_before_the_first_text_is_asked_for_again_as_it_was(
    scene: Scene, sampling: Sampling
) -> None:
    await scene.drafts([unspelt(""), BROKEN], [spelt("a"), END], sampling=sampling)
    assert scene.asked == [("", 20)] * 2
    assert [draft.pieces for draft in scene.out] == [("a",), ()]


async def test_tokens_whose_text_did_not_come_are_written_anew_and_counted_once(
    scene: Scene,
) -> None:
    first = [spelt("a"), unspelt("", ""), BROKEN]
    await scene.drafts(first, [unspelt("", ""), unspelt("é"), spelt("b"), END], sampling=FREE)
    assert [draft.pieces for draft in scene.out] == [("a",), ("", "", "é"), ("b",), ()]
    assert scene.asked[1] == ("a", 19)


async def test_tokens_without_text_at_the_end_are_handed_on(scene: Scene) -> None:
    await scene.drafts([spelt("a"), unspelt(""), Draft(("",), "length")])
    assert [draft.pieces for draft in scene.out] == [("a",), ("", "")]


@pytest.mark.parametrize("sampling", [GREEDY, FREE, SEEDED])
async def test_where_only_the_end_was_missing_nothing_is_asked_for(
    scene: Scene, sampling: Sampling
) -> None:
    drafts = await scene.drafts([spelt("abc"), BROKEN], sampling=sampling, max_tokens=3)
    assert drafts[-1] == Draft((), "length")
    assert scene.text == "abc"
    assert len(scene.asked) == 1
    assert scene.retried == []


async def test_pieces_without_ids_may_be_an_estimate_and_do_not_use_the_tokens_up(
    scene: Scene,
) -> None:
    await scene.drafts([unspelt("a", "b"), BROKEN], [unspelt("a", "b", "c"), END], max_tokens=2)
    assert scene.text == "abc"


async def test_the_cached_tokens_of_its_own_text_are_not_counted_as_the_prompts(
    scene: Scene,
) -> None:
    drafts = await scene.drafts([spelt("abcdef"), BROKEN], [END])
    assert drafts[-1].num_cached_tokens == len(PROMPT)


async def test_a_context_that_its_owner_changes_meanwhile_is_resumed_as_it_was(
    scene: Scene,
) -> None:
    writer = ScriptedWriter(scripts=[[spelt("a"), spelt("b"), BROKEN], [END]])
    context = Context(Segment("", PROMPT), [Segment("c", (99,))])
    resuming = ResumingWriter(writer, scene.client)
    async for _ in resuming.write(context, GREEDY, 9, Call("s")):
        context.truncate(0)
    assert writer.asked == [([*PROMPT, 99], 9), ([*PROMPT, 99, 97, 98], 7)]


STOPPING = replace(FREE, stop=("xyz", "!"))


@pytest.mark.parametrize(
    ("first", "rest"), [("axy", ["z", "q"]), ("axy", ["zq"]), ("ax", ["y", "z"]), ("ax", ["yz"])]
)
async def test_a_stop_string_across_the_break_is_not_missed(
    scene: Scene, first: str, rest: list[str]
) -> None:
    with pytest.raises(UpstreamInterrupted, match="stop string"):
        await scene.drafts([spelt(first), BROKEN], [*map(spelt, rest), END], sampling=STOPPING)


async def test_a_stop_string_across_two_breaks_is_not_missed(scene: Scene) -> None:
    with pytest.raises(UpstreamInterrupted, match="stop string"):
        await scene.drafts(
            [spelt("ax"), BROKEN], [spelt("y"), BROKEN], [spelt("z"), END], sampling=STOPPING
        )


@pytest.mark.parametrize("rest", [["y"], ["q", "xy"], ["x", "y"]])
async def test_what_only_looks_like_a_stop_string_goes_on(scene: Scene, rest: list[str]) -> None:
    await scene.drafts([spelt("axy"), BROKEN], [*map(spelt, rest), END], sampling=STOPPING)
    assert scene.text == "axy" + "".join(rest)


async def test_a_stream_that_breaks_after_every_token_still_gets_to_its_end(scene: Scene) -> None:
    await scene.drafts(*([spelt(c), BROKEN] for c in "abcdefgh"), [END])
    assert scene.text == "abcdefgh"
    assert len(scene.retried) == 8


async def test_attempts_that_bring_nothing_new_are_counted(scene: Scene) -> None:
    with pytest.raises(UpstreamUnreachable, match=r"it broke \(3 attempts\)$"):
        await scene.drafts([spelt("ab"), BROKEN], [unspelt(""), BROKEN])
    assert len(scene.asked) == 3
    assert scene.text == "ab"


async def test_repeating_old_text_is_no_progress(scene: Scene) -> None:
    with pytest.raises(UpstreamUnreachable, match=r"\(3 attempts\)$"):
        await scene.drafts([spelt("abc"), BROKEN], [spelt("ab"), BROKEN], sampling=SEEDED)
    assert scene.asked == [("", 20)] * 3


async def test_a_break_waits_as_the_server_wishes(scene: Scene) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    scene.client.retry = replace(QUICK, first_s=0.001, sleep=sleep)
    busy = UpstreamFailed("up", "busy", retry_after_s=9)
    await scene.drafts([spelt("a"), busy], [END])
    assert [9 <= wait < 9.1 for wait in waits] == [True]


@pytest.mark.parametrize("error", [UpstreamMalformed("up", "odd"), ContextExceeded("full")])
async def test_an_error_that_no_retry_helps_is_final(scene: Scene, error: Item) -> None:
    with pytest.raises(MotabError, match=r"(odd|full)$"):
        await scene.drafts([spelt("a"), error], [END])
    assert len(scene.asked) == 1


async def test_with_retries_off_a_break_is_final(scene: Scene) -> None:
    scene.client.retry = NO_RETRIES
    with pytest.raises(UpstreamUnreachable, match=r"it broke$"):
        await scene.drafts([spelt("a"), BROKEN], [END])
    assert scene.text == "a"


async def test_text_that_ends_without_a_reason_is_malformed(scene: Scene) -> None:
    with pytest.raises(UpstreamMalformed, match="without a reason"):
        await scene.drafts([spelt("a")])


async def test_closing_it_closes_the_stream_beneath(scene: Scene) -> None:
    writer = ScriptedWriter(scripts=[[spelt("a"), BROKEN], [spelt("b"), spelt("c"), END]])
    drafts = ResumingWriter(writer, scene.client).write(
        Context(Segment("", PROMPT)), GREEDY, 9, Call("s")
    )
    async with aclosing(drafts):
        assert [(await anext(drafts)).pieces for _ in range(2)] == [("a",), ("b",)]
        assert writer.num_open == 1
    assert writer.num_open == 0


async def test_cancelling_during_the_back_off_leaves_nothing_open(scene: Scene) -> None:
    backing_off = asyncio.Event()

    async def sleep(_: float) -> None:
        backing_off.set()
        await asyncio.Event().wait()

    scene.client.retry = replace(QUICK, sleep=sleep)
    task = asyncio.create_task(scene.drafts([spelt("a"), BROKEN], [END]))
    await backing_off.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert scene.writer.num_open == 0
    assert len(scene.asked) == 1


async def test_log_probabilities_stay_with_their_pieces_where_some_come_again(
    scene: Scene,
) -> None:
    def told(text: str, *logprobs: float) -> Item:
        return Draft(tuple(text), token_ids=None, logprobs=tuple((x,) for x in logprobs))

    first = [told("ab", -1.0, -2.0), Draft(("",), logprobs=((-3.0,),)), BROKEN]
    again = [told("a", -1.0), told("b", -2.0), Draft(("", "é"), logprobs=((-3.0,), (-4.0,)))]
    drafts = await scene.drafts(first, [*again, END], sampling=GREEDY)
    pieces = [(p, x) for d in drafts for p, x in zip(d.pieces, d.logprobs or (), strict=True)]
    assert pieces == [("a", (-1.0,)), ("b", (-2.0,)), ("", (-3.0,)), ("é", (-4.0,))]
