"""Checks how SGLang's backend scores a text beyond the contract."""

from typing import Any

import pytest

from proxy.backends.base import Context, Scores, Segment
from proxy.errors import UpstreamFailed, UpstreamMalformed
from tests.support.replay import CALL, Replay, json_reply
from tests.support.scores import entropy_from, geometric_mean
from tests.support.servers import sglang


async def scores_of(up: Replay, payload: Any, *lengths: int, entropy_known: bool = False) -> Scores:
    up.on("POST", sglang.GENERATE, json_reply(payload))
    context = sglang.scored_context(*(lengths or (sglang.NUM_STEP_1, sglang.NUM_STEP_2)))
    num_new = len(lengths or (sglang.NUM_STEP_1, sglang.NUM_STEP_2))
    return await sglang.backend(up).score(context, num_new, 3, CALL, entropy_known=entropy_known)


async def test_a_scoring_call_begins_one_token_early_so_that_the_null_entry_is_the_prompt_s(
    up: Replay,
) -> None:
    await scores_of(up, sglang.RECORDED.body("score_two_steps"))
    assert up.bodies(sglang.GENERATE) == [
        {
            "input_ids": sglang.SCORED_IDS,
            "sampling_params": {**sglang.NEUTRAL, "max_new_tokens": 1},
            "return_logprob": True,
            "logprob_start_len": sglang.NUM_PROMPT - 1,
            "top_logprobs_num": 3,
        }
    ]
    assert up.bodies(sglang.GENERATE) == [sglang.RECORDED.request("score_two_steps")]


async def test_entries_that_begin_one_token_off_are_malformed(up: Replay) -> None:
    """Either way, even where their number is right and each would pass for a probability."""

    def later(meta: Any) -> None:  # as if the leading null were not there
        for key in ("input_token_logprobs", "input_top_logprobs"):
            meta[key] = [*meta[key][1:], meta[key][-1]]

    def later_without_ids(meta: Any) -> None:
        meta["input_top_logprobs"] = [*meta["input_top_logprobs"][1:], [[-1.0, 1, None]] * 3]

    def earlier(meta: Any) -> None:
        for key in ("input_token_logprobs", "input_top_logprobs"):
            meta[key] = [meta[key][0], *meta[key][:-1]]

    for shift in (later, later_without_ids, earlier):
        with pytest.raises(UpstreamMalformed):
            await scores_of(up, sglang.with_meta(shift))


async def test_a_score_of_the_last_step_starts_at_that_step(up: Replay) -> None:
    up.on("POST", sglang.GENERATE, sglang.SCORING.of_last_step())
    context = sglang.scored_context(sglang.NUM_STEP_1, sglang.NUM_STEP_2)
    await sglang.backend(up).score(context, 1, 3, CALL, entropy_known=False)
    assert up.bodies(sglang.GENERATE)[0]["logprob_start_len"] == 6


async def test_a_known_entropy_changes_nothing_for_one_number_asks_for_both_top_ks(
    up: Replay,
) -> None:
    known = await scores_of(up, sglang.RECORDED.body("score_two_steps"), entropy_known=True)
    unknown = await scores_of(up, sglang.RECORDED.body("score_two_steps"))
    assert known == unknown
    assert up.bodies(sglang.GENERATE)[0] == up.bodies(sglang.GENERATE)[1]


async def test_the_next_entropy_is_not_taken_from_the_sampled_token(up: Replay) -> None:
    def other_sample(meta: Any) -> None:
        meta["output_token_logprobs"] = [[-3.5, 2, None]]

    scores = await scores_of(up, sglang.with_meta(other_sample))
    assert scores.next_entropy == pytest.approx(entropy_from(*sglang.NEXT_TOP), rel=1e-9)


async def test_a_candidate_too_many_is_dropped(up: Replay) -> None:
    def one_more(meta: Any) -> None:
        meta["input_top_logprobs"][1].append([-17.0, 99, None])
        meta["output_top_logprobs"][0].insert(0, [-17.0, 99, None])

    assert await scores_of(up, sglang.with_meta(one_more)) == await scores_of(
        up, sglang.RECORDED.body("score_two_steps")
    )


@pytest.mark.parametrize("lowest", sglang.LOWEST)
async def test_an_impossible_candidate_adds_nothing_to_the_next_entropy(
    up: Replay, lowest: float
) -> None:
    def impossible(meta: Any) -> None:
        meta["output_top_logprobs"][0][2][0] = lowest

    scores = await scores_of(up, sglang.with_meta(impossible))
    assert scores.next_entropy == pytest.approx(entropy_from(*sglang.NEXT_TOP[:2]), rel=1e-9)


@pytest.mark.parametrize("vocabulary", [[0, 393], [0, 394], []])
async def test_the_vocabulary_s_last_token_alone_is_told_as_token_0(
    up: Replay, vocabulary: list[int]
) -> None:
    recorded = json_reply(sglang.RECORDED.body("tiny_last_id"))
    refusal = {"error": {"message": f"logit_bias must has keys in {vocabulary}, got -1."}}
    up.on("POST", sglang.GENERATE, json_reply(refusal, 400), recorded)
    backend = sglang.backend(up)
    await backend.learn_vocabulary()
    context = Context(Segment("", (286,)), [Segment("98 is", (393, 263))])
    scoring = backend.score(context, 1, 2, CALL, entropy_known=False)
    if vocabulary == [0, 393]:
        meta = sglang.RECORDED.json("tiny_last_id")["meta_info"]
        expected = geometric_mean([row[0] for row in meta["input_token_logprobs"][1:]])
        assert (await scoring).steps[0].value == pytest.approx(expected, rel=1e-9)
        assert up.bodies(sglang.GENERATE)[1] == sglang.RECORDED.request("tiny_last_id")
        return
    with pytest.raises(UpstreamMalformed, match="token 393 was sent, the entry is token 0's"):
        await scoring


async def test_a_server_that_does_not_tell_of_its_cache_is_not_taken_for_an_empty_one(
    up: Replay,
) -> None:
    payload = sglang.with_meta(lambda meta: meta.pop("cached_tokens"))
    assert (await scores_of(up, payload)).num_cached_tokens is None


async def test_a_context_that_is_all_step_has_no_score_for_its_first_token(up: Replay) -> None:
    def whole(meta: Any) -> None:
        meta["input_token_logprobs"] = [[None, 2931, None], [-4.5, 34, None]]
        meta["input_top_logprobs"] = [None, [[-1.0, 9, None]] * 3]

    up.on("POST", sglang.GENERATE, json_reply(sglang.with_meta(whole)))
    context = Context(Segment("", ()), [Segment("So 2", (2931, 34))])
    with pytest.raises(UpstreamMalformed, match="missing"):
        await sglang.backend(up).score(context, 1, 3, CALL, entropy_known=False)
    assert up.bodies(sglang.GENERATE)[0]["logprob_start_len"] == 0


async def test_an_aborted_scoring_call_has_failed_though_its_status_is_200(up: Replay) -> None:
    with pytest.raises(UpstreamFailed, match="Abort in waiting queue"):
        await scores_of(up, sglang.RECORDED.body("score_aborted"))


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        ([[None, 198, "\n"], [-0.1, 2931, "So"]], "3 entries asked for, 2 came"),
        ([[-1.0, 198, "\n"], [-0.1, 2931, "So"], [-0.2, 34, "2"]], "one token off"),
        ([[None, 198, "\n"], [-0.1, 2931, "So"], [-0.2, 35, "2"]], "the entry is token 35's"),
        ([[None, 198, "\n"], [-0.1, 2931, "So"], [-0.2, 34, "3"]], "do not spell the text"),
    ],
)
async def test_entries_that_are_not_the_text_s_are_malformed(
    up: Replay, rows: list[Any], fault: str
) -> None:
    sglang.token_answers(up, rows)
    with pytest.raises(UpstreamMalformed, match=fault):
        await sglang.backend(up).token_logprobs(sglang.token_context(), CALL)
