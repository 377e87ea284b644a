"""Checks how vLLM's backend scores a text beyond the contract."""

from typing import Any

import orjson
import pytest

from proxy.backends.base import Context, ScoredToken, Scores, Segment
from proxy.errors import UpstreamMalformed
from tests.support.replay import CALL, Replay, json_reply, replay
from tests.support.scores import entropy_from
from tests.support.servers import vllm


async def scores_of(
    up: Replay, payload: Any, *lengths: int, top_k: int = 20, entropy_known: bool = False
) -> Scores:
    up.on("POST", vllm.COMPLETIONS, json_reply(payload))
    return await vllm.backend(up).score(
        vllm.scored_context(*lengths), len(lengths), top_k, CALL, entropy_known=entropy_known
    )


async def test_the_own_token_counts_wherever_it_stands_in_its_row(up: Replay) -> None:
    payload = vllm.RECORDED.json("score_two_steps")
    choice = payload["choices"][0]
    choice["prompt_logprobs"] = [
        row and dict(reversed(row.items())) for row in choice["prompt_logprobs"]
    ]
    turned = await scores_of(up, orjson.dumps(payload), vllm.NUM_STEP_1, vllm.NUM_STEP_2)
    async with replay() as other:
        payload = vllm.RECORDED.body("score_two_steps")
        assert turned == await scores_of(other, payload, vllm.NUM_STEP_1, vllm.NUM_STEP_2)


async def test_a_known_entropy_needs_no_top_k_and_the_value_is_the_same(up: Replay) -> None:
    full = await scores_of(up, vllm.RECORDED.body("score_two_steps"), vllm.NUM_STEP_2)
    async with replay() as other:
        payload = vllm.RECORDED.body("score_value_only")
        lean = await scores_of(other, payload, vllm.NUM_STEP_2, entropy_known=True)
    assert lean.steps[0].entropy is None
    assert lean.steps[0].value == pytest.approx(full.steps[0].value, rel=1e-6)
    assert lean.steps[0].num_tokens == vllm.NUM_STEP_2
    assert lean.next_entropy == pytest.approx(full.next_entropy, rel=1e-6)


async def test_the_prompt_s_own_token_below_the_top_k_is_dropped_from_the_entropy(
    up: Replay,
) -> None:
    # Every token a step of its own, so that each position's entropy is asked for.
    scores = await scores_of(up, vllm.RECORDED.body("score_two_steps"), *[1] * 18)
    rows = vllm.prompt_rows()[-18:]
    assert [len(row) for row in rows].count(21) == 2
    for row, score in zip(rows, scores.steps, strict=True):
        assert score.entropy == pytest.approx(vllm.row_entropy(row, 20), rel=1e-9)
        with_extra = entropy_from(*[entry["logprob"] for entry in row.values()])
        assert (score.entropy == pytest.approx(with_extra, rel=1e-9)) == (len(row) == 20)


async def test_the_order_of_the_entries_does_not_matter(up: Replay) -> None:
    payload = vllm.RECORDED.json("score_two_steps")
    choice = payload["choices"][0]
    choice["prompt_logprobs"] = [
        row and dict(reversed(row.items())) for row in choice["prompt_logprobs"]
    ]
    straight = await scores_of(up, vllm.RECORDED.body("score_two_steps"), 10, 8)
    async with replay() as other:
        assert await scores_of(other, payload, 10, 8) == straight


async def test_a_generated_token_outside_the_top_k_is_dropped_from_the_next_entropy(
    up: Replay,
) -> None:
    payload = vllm.RECORDED.json("score_two_steps")
    sampled = vllm.RECORDED.json("sampled_outside_top3")["choices"][0]["logprobs"]
    payload["choices"][0]["logprobs"] = sampled
    scores = await scores_of(up, payload, 10, 8, top_k=3)
    logprobs = list(sampled["top_logprobs"][0].values())
    assert len(logprobs) == 4
    assert scores.next_entropy == pytest.approx(entropy_from(*logprobs[1:]), rel=1e-9)
    assert scores.steps[0].entropy == pytest.approx(
        vllm.row_entropy(vllm.prompt_rows()[37], 3), rel=1e-9
    )


async def test_an_impossible_token_makes_a_long_step_s_value_zero_too(up: Replay) -> None:
    # Taken as a number, -9999 would be one bad token among many.
    logprobs = [0.0] * 9_999 + [-9999.0]
    payload = vllm.RECORDED.json("score_value_only")
    payload["choices"][0]["prompt_logprobs"] = [
        None,
        *({"5": {"logprob": logprob, "rank": 1}} for logprob in logprobs),
    ]
    up.on("POST", vllm.COMPLETIONS, json_reply(payload))
    context = Context(Segment("", (1,)), [Segment("long", (5,) * len(logprobs))])
    scores = await vllm.backend(up).score(context, 1, 20, CALL, entropy_known=True)
    assert scores.steps[0].value == 0.0


@pytest.mark.parametrize(
    ("lengths", "entropy_known", "top_k"),
    [((10, 8), False, 20), ((10, 8), True, 20), ((8,), False, 20), ((8,), True, 0)],
    ids=["two", "two, first known", "one", "one known"],
)
async def test_a_scoring_call_asks_for_a_top_k_of_the_prompt_only_where_it_must(
    up: Replay, lengths: tuple[int, ...], entropy_known: bool, top_k: int
) -> None:
    payload = vllm.RECORDED.body("score_two_steps" if top_k else "score_value_only")
    await scores_of(up, payload, *lengths, entropy_known=entropy_known)
    (sent,) = up.bodies(vllm.COMPLETIONS)
    assert sent == {
        **vllm.NEUTRAL,
        "prompt": vllm.SCORED_IDS,
        "prompt_logprobs": top_k,
        "logprobs": 20,
        "max_tokens": 1,
        "return_tokens_as_token_ids": True,
    }
    assert sent == vllm.RECORDED.request("score_two_steps" if top_k else "score_value_only")


async def test_cached_tokens_of_a_scoring_call_are_passed_on(up: Replay) -> None:
    payload = vllm.RECORDED.json("score_two_steps")
    assert (await scores_of(up, payload, 10, 8)).num_cached_tokens == 0
    payload["usage"]["prompt_tokens_details"]["cached_tokens"] = 16
    async with replay() as other:
        assert (await scores_of(other, payload, 10, 8)).num_cached_tokens == 16
    payload["usage"]["prompt_tokens_details"] = None
    async with replay() as other:
        assert (await scores_of(other, payload, 10, 8)).num_cached_tokens is None


async def test_the_prompt_s_own_token_does_not_stand_in_for_a_missing_candidate(
    up: Replay,
) -> None:
    def drop_one_of_21(choice: Any) -> None:
        row = choice["prompt_logprobs"][48]
        del row[next(key for key, entry in row.items() if entry["rank"] == 20)]
        assert len(row) == 20

    with pytest.raises(UpstreamMalformed):
        await scores_of(up, vllm.with_choice(drop_one_of_21), 11, 7)  # step 2 begins at row 48


async def logprobs_of(up: Replay, payload: Any) -> tuple[ScoredToken, ...]:
    up.on("POST", vllm.COMPLETIONS, json_reply(payload))
    context = vllm.scored_context(vllm.NUM_STEP_1, vllm.NUM_STEP_2)
    context.texts[-1] = vllm.STEPS[1]
    return await vllm.backend(up).token_logprobs(context, CALL)


async def test_an_answer_without_prompt_logprobs_has_no_token_logprobs(up: Replay) -> None:
    answer = vllm.RECORDED.json("score_value_only")
    answer["choices"][0]["prompt_logprobs"] = None
    with pytest.raises(UpstreamMalformed):
        await logprobs_of(up, answer)


async def test_tokens_that_spell_another_text_are_malformed(up: Replay) -> None:
    answer = vllm.RECORDED.json("score_value_only")
    answer["choices"][0]["prompt_logprobs"][-1] = {"34": {"logprob": -1.0, "decoded_token": "3"}}
    with pytest.raises(UpstreamMalformed, match="do not spell the text"):
        await logprobs_of(up, answer)
