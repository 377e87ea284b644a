"""Checks how vLLM's backend scores from the prefix cache, on answers of Model Runner V2."""

from typing import Any

import pytest

from proxy.backends.base import Context, Scores, Segment
from proxy.backends.servers.vllm_cached import ROUTE, CachedVllm
from proxy.errors import UpstreamFailed, UpstreamRefused
from tests.support.replay import CALL, Replay, Reply, Seen, json_reply
from tests.support.scores import entropy_from, geometric_mean, steps_at_the_end
from tests.support.servers import vllm, vllm_v2
from tests.support.servers.vllm_v2 import RECORDED, Accident, VllmV2, state_entropy, value


def text(num: int) -> list[int]:
    return [7, *range(1000, 999 + num)]


async def scored(up: Replay, ids: list[int], *lengths: int, entropy_known: bool = True) -> Scores:
    context = steps_at_the_end(ids, *lengths)
    return await vllm_v2.backend(up).score(
        context, len(lengths), 20, CALL, entropy_known=entropy_known
    )


def expect_exact(scores: Scores, ids: list[int], *lengths: int, entropy_known: bool = True) -> None:
    """Check every number against the model's own."""
    start = len(ids) - sum(lengths)
    for number, (step, length) in enumerate(zip(scores.steps, lengths, strict=True)):
        assert step.value == pytest.approx(value(ids, start, start + length), rel=1e-12)
        known = None if entropy_known and number == 0 else state_entropy(ids[:start])
        assert step.entropy == known
        assert step.num_tokens == length
        start += length
    assert scores.next_entropy == state_entropy(ids)


# What the real server answers.


def recorded_context(name: str, *lengths: int) -> Context:
    return steps_at_the_end(RECORDED.request(name)["token_ids"], *lengths)


@pytest.mark.parametrize(
    ("name", "lengths", "known"),
    [("step", (20,), True), ("two_steps", (12, 7), True), ("new_text", (9,), False)],
)
async def test_the_recorded_answers_give_values_and_entropies(
    up: Replay, name: str, lengths: tuple[int, ...], known: bool
) -> None:
    up.on("POST", ROUTE, RECORDED.answering(name))
    context = recorded_context(name, *lengths)
    scores = await vllm_v2.backend(up).score(context, len(lengths), 20, CALL, entropy_known=known)
    answer = RECORDED.json(name)
    rows, ids = answer["prompt_logprobs"], context.token_ids
    start = len(ids) - sum(lengths)
    for number, step in enumerate(scores.steps):
        end = start + lengths[number]
        own = [rows[i - len(ids)][str(ids[i])]["logprob"] for i in range(start, end)]
        assert step.value == pytest.approx(geometric_mean(own), rel=1e-5)
        if number or not known:
            row = rows[start - len(ids)]
            assert step.entropy == pytest.approx(vllm.row_entropy(row, 20), rel=1e-9)
        start = end
    top = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    assert scores.next_entropy == pytest.approx(entropy_from(*[x["logprob"] for x in top]))
    cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert (scores.num_cached_tokens, scores.scoring) == (cached, None)


async def test_a_recorded_step_that_begins_where_a_block_ends_needs_one_more_call(
    up: Replay,
) -> None:
    up.on("POST", ROUTE, RECORDED.answering("border"))
    up.on("POST", vllm.COMPLETIONS, RECORDED.answering("border_first"))
    context = recorded_context("border", 10)
    scores = await vllm_v2.backend(up).score(context, 1, 20, CALL, entropy_known=True)
    first = RECORDED.json("border_first")["choices"][0]["logprobs"]["top_logprobs"][0]
    rows, ids = RECORDED.json("border")["prompt_logprobs"], context.token_ids
    own = [rows[i - len(ids)][str(ids[i])]["logprob"] for i in range(65, 74)]
    logprobs = [first[f"token_id:{ids[64]}"], *own]
    assert scores.steps[0].value == pytest.approx(geometric_mean(logprobs), rel=1e-9)
    assert (scores.num_cached_tokens, scores.scoring) == (64, None)


# The rules of the cache.


async def test_only_new_tokens_and_the_rest_of_a_block_are_computed(up: Replay) -> None:
    server = VllmV2()
    server.serve(up)
    ids = text(600)
    server.read(ids[:550])
    server.num_computed = 0
    expect_exact(await scored(up, ids, 50), ids, 50)
    assert server.num_computed == 600 - 544
    (body,) = up.bodies(ROUTE)
    asked = body["sampling_params"]
    assert asked["skip_reading_prefix_cache"] is False
    assert asked["prompt_logprob_token_ids"] == [[i] for i in ids[550:]]
    assert (asked["prompt_logprob_start"], asked["prompt_logprobs"]) == (549, 0)


async def test_several_steps_and_an_unknown_entropy_come_exactly(up: Replay) -> None:
    VllmV2().serve(up)
    ids = text(600)
    scores = await scored(up, ids, 30, 20, 10, entropy_known=False)
    expect_exact(scores, ids, 30, 20, 10, entropy_known=False)
    assert up.bodies(ROUTE)[0]["sampling_params"]["prompt_logprobs"] == 0
    (apart,) = up.bodies(vllm.COMPLETIONS)
    assert list(map(len, apart["prompt"])) == [540, 570, 590]


async def test_short_waiting_steps_have_their_candidates_in_the_call(up: Replay) -> None:
    server = VllmV2()
    server.serve(up)
    ids = text(600)
    server.read(ids[:540])
    expect_exact(await scored(up, ids, 30, 20, 10), ids, 30, 20, 10)
    assert not up.bodies(vllm.COMPLETIONS)


@pytest.mark.parametrize("known", [True, False])
async def test_a_step_at_the_end_of_a_block_is_scored_exactly(up: Replay, known: bool) -> None:
    server = VllmV2()
    server.serve(up)
    ids = text(200)
    server.read(ids[:160])
    scores = await scored(up, ids, 25, 15, entropy_known=known)
    expect_exact(scores, ids, 25, 15, entropy_known=known)
    assert scores.scoring is None
    one = up.bodies(vllm.COMPLETIONS)[0]
    assert (one["prompt"], one["logprob_token_ids"]) == (ids[:160], [ids[160]])


@pytest.mark.parametrize(
    "accident", ["preempted", "recounted", "nan", "nan_row", "other_row", "no_rows"]
)
@pytest.mark.parametrize("num_read", [0, 550, 544, 580])
async def test_an_accident_costs_a_recomputation_and_never_changes_a_number(
    up: Replay, accident: Accident, num_read: int
) -> None:
    server = VllmV2(accidents=[accident])
    server.serve(up)
    ids = text(600)
    server.read(ids[:num_read])
    num_before = 544 if num_read == 544 else 550
    scores = await scored(up, ids, 600 - num_before)
    expect_exact(scores, ids, 600 - num_before)
    # Where a block ends there is no array anyway, and the rows are not lost.
    has_rows = num_read == 544 and accident in {"preempted", "nan"}
    assert scores.scoring == (None if has_rows else "prompt_logprobs")


async def test_steps_that_the_cache_holds_are_computed_whole(up: Replay) -> None:
    server = VllmV2()
    server.serve(up)
    ids = text(600)
    server.read(ids)
    scores = await scored(up, ids, 50)
    expect_exact(scores, ids, 50)
    assert (scores.scoring, scores.num_cached_tokens) == ("prompt_logprobs", 0)


async def test_an_evicted_context_is_computed_again_in_the_same_call(up: Replay) -> None:
    server = VllmV2()
    server.serve(up)
    ids = text(600)
    server.read(ids[:550])
    server.evict()
    scores = await scored(up, ids, 50)
    expect_exact(scores, ids, 50)
    assert (scores.scoring, scores.num_cached_tokens) == (None, 0)


async def test_a_server_that_was_restarted_without_the_flag_scores_the_old_way(up: Replay) -> None:
    server = VllmV2(runner="none")
    server.serve(up)
    ids = text(600)
    scores = await scored(up, ids, 50)
    expect_exact(scores, ids, 50)
    assert scores.scoring == "prompt_logprobs"


async def test_an_outage_is_an_error_and_no_score(up: Replay) -> None:
    up.on("POST", ROUTE, json_reply({"error": {"message": "dead"}}, 500))
    with pytest.raises(UpstreamFailed):
        await scored(up, text(600), 50)
    assert not up.bodies(vllm.COMPLETIONS)


async def test_nan_that_only_the_candidate_can_show_is_not_a_score(up: Replay) -> None:
    server = VllmV2()
    server.serve(up)
    ids = text(200)
    server.read(ids[:160])
    replies = [json_reply({"choices": [_lowest(ids[160])]})]

    def answer(seen: Seen) -> Reply:
        return replies.pop() if replies else server.answer(seen)

    up.on("POST", vllm.COMPLETIONS, answer)
    scores = await scored(up, ids, 40)
    expect_exact(scores, ids, 40)
    assert scores.scoring == "prompt_logprobs"


def _lowest(token: int) -> dict[str, Any]:
    return {"index": 0, "logprobs": {"top_logprobs": [{f"token_id:{token}": -9999.0}]}}


async def test_a_cache_that_never_serves_makes_steps_wait_for_fewer_calls(up: Replay) -> None:
    server = VllmV2()
    server.serve(up)
    scorer = vllm_v2.backend(up)
    ids = text(600)
    for num_calls in range(1, 9):
        assert not scorer.recomputes, num_calls
        server.evict()
        await scorer.score(steps_at_the_end(ids, 50), 1, 20, CALL, entropy_known=True)
    assert scorer.recomputes
    server.evict()
    server.read(ids[:550])
    await scorer.score(steps_at_the_end(ids, 50), 1, 20, CALL, entropy_known=True)
    assert not scorer.recomputes


# The proof.


async def prove(up: Replay) -> CachedVllm:
    return await CachedVllm.prove(vllm.backend(up), up.client, vllm_v2.MODEL)


async def test_v2_is_proven_before_the_cache_is_read(up: Replay) -> None:
    VllmV2().serve(up)
    scorer = await prove(up)
    assert (scorer.scoring, scorer.recomputes) == ("cached_logprobs", False)
    asked = [body["sampling_params"] for body in up.bodies(ROUTE)]
    reads = [fields.get("skip_reading_prefix_cache", "absent") for fields in asked]
    assert reads == ["absent", False, "absent"]
    assert all(fields["prompt_logprob_token_ids"] for fields in asked)


@pytest.mark.parametrize(
    ("server", "reason"),
    [
        (VllmV2(runner="v1"), "prompt_logprob_token_ids requires the V2 model runner"),
        (VllmV2(runner="none"), "answered 404"),
        (VllmV2(accidents=["preempted"]), "no values of those"),
        (VllmV2(accidents=["no_rows"]), "not what was asked for"),
    ],
)
async def test_a_server_without_proof_is_never_asked_to_read_its_cache(
    up: Replay, server: VllmV2, reason: str
) -> None:
    server.serve(up)
    with pytest.raises(UpstreamRefused, match=f"--enable-scale-out.*{reason}"):
        await prove(up)
    (only,) = up.bodies(ROUTE)
    assert "skip_reading_prefix_cache" not in only["sampling_params"]


@pytest.mark.parametrize(
    ("server", "reason"),
    [
        (VllmV2(has_cache=False), "its cache does not serve 250 tokens"),
        (VllmV2(block=512), "its cache does not serve 250 tokens"),
        (VllmV2(off_by_nats=0.1), "moves log-probabilities by 0.1 nats"),
    ],
)
async def test_a_cache_that_does_not_serve_right_is_no_proof(
    up: Replay, server: VllmV2, reason: str
) -> None:
    server.serve(up)
    with pytest.raises(UpstreamRefused, match=reason):
        await prove(up)


async def test_a_server_that_ignores_the_ids_is_no_proof(up: Replay) -> None:
    """As older versions do, which have the route but not the field."""
    server = VllmV2()
    server.serve(up)

    def answer(seen: Seen) -> Reply:
        _, body = server.post(seen.path, seen.body)
        return json_reply(body | {"prompt_token_id_logprobs": None})

    up.on("POST", ROUTE, answer)
    with pytest.raises(UpstreamRefused, match="no values"):
        await prove(up)
    assert len(up.bodies(ROUTE)) == 1


async def test_a_step_in_which_no_token_ends_has_the_value_of_the_token_around_it(
    up: Replay,
) -> None:
    VllmV2().serve(up)
    ids = text(60)
    context = Context(Segment("", tuple(ids[:40])), [Segment("a", tuple(ids[40:59]))])
    context.append(Segment("b", ()))
    context.look_ahead(ids[59])
    scores = await vllm_v2.backend(up).score(context, 2, 20, CALL, entropy_known=True)
    assert [step.num_tokens for step in scores.steps] == [19, 1]
    assert scores.steps[1].value == pytest.approx(value(ids, 59, 60), rel=1e-12)
    assert scores.next_entropy is None
