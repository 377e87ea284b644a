"""Checks where a text waits at a shut gate and how it continues."""

import pytest

from proxy.backends.base import Draft, Sampling
from tests.support.resuming import END, FREE, GREEDY, SEEDED, Scene, spelt, unspelt


@pytest.mark.parametrize("sampling", [GREEDY, FREE])
async def test_a_shut_gate_closes_the_stream_and_the_text_goes_on_from_its_exact_tokens(
    scene: Scene, sampling: Sampling
) -> None:
    lost = spelt("LOST")
    open_then = await scene.drafts_with_pauses(
        [spelt("ab"), lost], [spelt("c"), lost], [END], sampling=sampling
    )
    assert scene.text == "abc"
    assert scene.asked == [("", 20), ("ab", 18), ("abc", 17)]
    assert not any(open_then), "the server writes while the text waits"
    assert scene.out[-1].end == "stop"
    assert scene.retried == []


async def test_a_seeded_text_does_not_wait_for_it_would_become_another(scene: Scene) -> None:
    script = [spelt("ab"), spelt("c"), spelt("d"), END]
    open_then = await scene.drafts_with_pauses(script, sampling=SEEDED)
    assert scene.text == "abcd"
    assert scene.asked == [("", 20)]
    assert open_then == [1, 1, 1, 0]


async def test_a_text_waits_only_once_the_ids_of_all_of_it_are_known(scene: Scene) -> None:
    first = [unspelt("é"), Draft(("f",), token_ids=(233, 102)), spelt("LOST"), END]
    open_then = await scene.drafts_with_pauses(first, [spelt("g"), END], [END])
    assert scene.text == "éfg"
    assert scene.asked == [("", 20), ("éf", 18), ("éfg", 17)]
    assert open_then == [1, 0, 0, 0]


async def test_a_text_does_not_wait_inside_of_what_may_become_a_stop_string(scene: Scene) -> None:
    stopping = Sampling(0.0, stop=("##",))
    script = [spelt("a#"), spelt("b"), spelt("LOST"), END]
    await scene.drafts_with_pauses(script, [END], sampling=stopping)
    assert scene.text == "a#b"
    assert scene.asked == [("", 20), ("a#b", 17)]


async def test_a_pause_at_the_last_token_asks_for_no_more(scene: Scene) -> None:
    await scene.drafts_with_pauses([spelt("x" * 20)])
    assert scene.out[-1] == Draft((), "length")
    assert scene.asked == [("", 20)]
