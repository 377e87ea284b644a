"""Checks how vLLM's backend asks for the entropies inside a long text."""

from typing import Any

import pytest

from proxy.errors import UpstreamMalformed
from tests.support.replay import CALL, Replay, Reply, Seen, json_reply
from tests.support.scores import entropy_from, steps_at_the_end
from tests.support.servers import vllm

LONG = [7, *range(1000, 1600)]


def long_answer(seen: Seen) -> Reply:
    """vLLM's of a made-up model: the state after n tokens has the candidates of `state(n)`."""
    ids = seen.body["prompt"]
    prompts = ids if isinstance(ids[0], list) else [ids]
    choices: list[dict[str, Any]] = []
    for prompt in prompts:
        top = {f"token_id:{rank}": x for rank, x in enumerate(state(len(prompt)))}
        choices.append({"index": len(choices), "logprobs": {"top_logprobs": [top]}})
    if "prompt_logprobs" in seen.body:
        rows: list[Any] = [None]
        for index, token in enumerate(ids[1:], start=1):
            rows.append({str(token): {"logprob": -0.5, "rank": 30}})
            for rank, x in enumerate(state(index)[: seen.body["prompt_logprobs"]]):
                rows[-1][str(rank)] = {"logprob": x, "rank": rank + 1}
        choices[0]["prompt_logprobs"] = rows
    return json_reply({"choices": choices, "usage": {}})


def state(num_tokens: int) -> list[float]:
    return [-1.0 - 0.001 * (num_tokens % 100) * rank for rank in range(20)]


async def test_the_entropies_inside_a_long_text_are_asked_for_on_their_own(up: Replay) -> None:
    up.on("POST", vllm.COMPLETIONS, long_answer)
    context = steps_at_the_end(LONG, 50, 30, 20)
    scores = await vllm.backend(up).score(context, 3, 20, CALL, entropy_known=True)
    whole, inner = up.bodies(vllm.COMPLETIONS)
    # No candidates for the 600 positions; the other call finds the context in the cache.
    assert (whole["prompt"], whole["prompt_logprobs"], whole["logprobs"]) == (LONG, 0, 20)
    assert inner["prompt"] == [LONG[:551], LONG[:581]]
    assert "prompt_logprobs" not in inner
    assert (inner["logprobs"], inner["max_tokens"], inner["temperature"]) == (20, 1, 0.0)
    after = {n: pytest.approx(entropy_from(*state(n)), rel=1e-9) for n in (551, 581, 601)}
    assert [step.entropy for step in scores.steps] == [None, after[551], after[581]]
    assert scores.next_entropy == after[601]
    assert [step.num_tokens for step in scores.steps] == [50, 30, 20]
    assert scores.num_tokens == 100


async def test_the_first_of_the_entropies_is_asked_for_where_nobody_knows_it(up: Replay) -> None:
    up.on("POST", vllm.COMPLETIONS, long_answer)
    context = steps_at_the_end(LONG, 50, 30)
    scores = await vllm.backend(up).score(context, 2, 20, CALL, entropy_known=False)
    _, inner = up.bodies(vllm.COMPLETIONS)
    assert list(map(len, inner["prompt"])) == [521, 571]
    assert [step.entropy is None for step in scores.steps] == [False, False]


async def test_no_call_has_more_than_100_000_ids_of_prompts(up: Replay) -> None:
    up.on("POST", vllm.COMPLETIONS, long_answer)
    ids = [7, *range(1000, 31_000)]
    context = steps_at_the_end(ids, *[100] * 8)
    scores = await vllm.backend(up).score(context, 8, 20, CALL, entropy_known=True)
    _, *inner = up.bodies(vllm.COMPLETIONS)
    lengths = sorted(list(map(len, body["prompt"])) for body in inner)
    assert lengths == [[29301, 29401, 29501], [29601, 29701, 29801], [29901]]
    assert scores.steps[0].entropy is None
    for step, n in zip(scores.steps[1:], range(29301, 30000, 100), strict=True):
        assert step.entropy == pytest.approx(entropy_from(*state(n)), rel=1e-9)


async def test_the_recorded_entropies_of_two_prompts_are_those_of_the_rows(up: Replay) -> None:
    """Whatever order they come in; asked for behind a scoring answer that is made long."""
    recorded = vllm.RECORDED.json("two_next_entropies")
    recorded["choices"].reverse()

    def answer(seen: Seen) -> Reply:
        if "prompt_logprobs" in seen.body:
            return long_answer(seen)
        prompts = [vllm.SCORED_IDS[:37], vllm.SCORED_IDS[:47]]
        assert seen.body | {"prompt": prompts} == vllm.RECORDED.request("two_next_entropies")
        return json_reply(recorded)

    up.on("POST", vllm.COMPLETIONS, answer)
    context = steps_at_the_end(LONG, 50, 30)
    scores = await vllm.backend(up).score(context, 2, 20, CALL, entropy_known=False)
    rows = vllm.prompt_rows()
    expected = [pytest.approx(vllm.row_entropy(rows[n], 20), rel=1e-5) for n in (37, 47)]
    assert [step.entropy for step in scores.steps] == expected


async def test_where_many_short_steps_wait_the_candidates_come_with_the_call(up: Replay) -> None:
    up.on("POST", vllm.COMPLETIONS, long_answer)
    context = steps_at_the_end(LONG, *[10] * 8)
    scores = await vllm.backend(up).score(context, 8, 20, CALL, entropy_known=True)
    (whole,) = up.bodies(vllm.COMPLETIONS)
    assert whole["prompt_logprobs"] == 20
    expected = [pytest.approx(entropy_from(*state(521 + 10 * n)), rel=1e-9) for n in range(8)]
    assert [step.entropy for step in scores.steps] == expected


FEW: dict[str, Any] = {"index": 0, "logprobs": {"top_logprobs": [{"token_id:1": -0.1}]}}


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ([FEW], "20 top log-probabilities"),
        ([], "1 prompts, but 0 choices"),
        ([FEW, FEW | {"index": 1}], "1 prompts, but 2 choices"),
    ],
)
async def test_a_lost_entropy_inside_a_long_text_is_an_error(
    up: Replay, choices: list[Any], message: str
) -> None:
    def answer(seen: Seen) -> Reply:
        if "prompt_logprobs" in seen.body:
            return long_answer(seen)
        return json_reply({"choices": choices})

    up.on("POST", vllm.COMPLETIONS, answer)
    context = steps_at_the_end(LONG, 50, 30)
    with pytest.raises(ExceptionGroup) as caught:
        await vllm.backend(up).score(context, 2, 20, CALL, entropy_known=True)
    assert caught.group_contains(UpstreamMalformed, match=message)
