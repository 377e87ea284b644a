"""Checks how llama.cpp's backend scores by forced decoding beyond the contract."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from proxy.backends.base import Context, Scores, Segment
from proxy.errors import UpstreamMalformed
from tests.support.replay import CALL, Replay, Reply, Seen, json_reply, replay
from tests.support.scores import entropy_from
from tests.support.servers import llamacpp


async def scores_of(
    up: Replay, edits: Mapping[int, Callable[[Any], object]] = llamacpp.UNCHANGED, num_new: int = 2
) -> Scores:
    up.on("POST", llamacpp.COMPLETION, llamacpp.forced(edits))
    return await llamacpp.backend(up).score(
        llamacpp.scored_context(), num_new, 20, CALL, entropy_known=False
    )


async def test_scoring_forces_one_token_a_request_in_one_slot(up: Replay) -> None:
    await scores_of(up)
    context = llamacpp.scored_context()
    assert up.bodies(llamacpp.COMPLETION) == [
        {
            **llamacpp.NEUTRAL,
            "prompt": context.token_ids[:position],
            "n_predict": 1,
            "n_probs": 20 if position in (37, 47) else 1,  # the first token of each step
            "temperature": 0,
            "logit_bias": [[context.token_ids[position], 1000]],
            "cache_prompt": True,
            "id_slot": 0,
        }
        for position in range(37, 52)
    ]


async def test_only_the_tokens_of_the_new_step_are_forced(up: Replay) -> None:
    await scores_of(up, num_new=1)
    lengths = [len(body["prompt"]) for body in up.bodies(llamacpp.COMPLETION)]
    assert lengths == [47, 48, 49, 50, 51]


async def test_only_a_step_s_first_token_has_a_say_in_its_entropy(up: Replay) -> None:
    straight = await scores_of(up)

    def flat(reply: Any) -> None:
        llamacpp.probabilities(reply)["top_logprobs"] = [
            {"id": i, "logprob": -3.0} for i in range(20)
        ]

    later = {index: flat for index in range(15) if index not in (0, 10)}
    async with replay() as other:
        assert (await scores_of(other, later)).steps == straight.steps
    async with replay() as other:
        changed = await scores_of(other, {10: flat})
    assert changed.steps[0] == straight.steps[0]
    assert changed.steps[1].entropy == pytest.approx(math.log(20))
    assert changed.steps[1].value == straight.steps[1].value


async def test_a_candidate_that_is_impossible_adds_nothing_to_the_entropy(up: Replay) -> None:
    def impossible(reply: Any) -> None:
        llamacpp.probabilities(reply)["top_logprobs"][-1]["logprob"] = llamacpp.LOWEST

    scores = await scores_of(up, {0: impossible})
    row = llamacpp.probabilities(llamacpp.exchanges("score")[0][1])
    top = [candidate["logprob"] for candidate in row["top_logprobs"][:-1]]
    assert scores.steps[0].entropy == pytest.approx(entropy_from(*top), rel=1e-9)


async def test_candidates_that_are_all_impossible_have_no_entropy(up: Replay) -> None:
    def impossible(reply: Any) -> None:
        for candidate in llamacpp.probabilities(reply)["top_logprobs"]:
            candidate["logprob"] = llamacpp.LOWEST

    with pytest.raises(UpstreamMalformed):
        await scores_of(up, {0: impossible})


async def test_a_known_entropy_saves_nothing_and_is_given_all_the_same(up: Replay) -> None:
    up.on("POST", llamacpp.COMPLETION, llamacpp.forced())
    scores = await llamacpp.backend(up).score(
        llamacpp.scored_context(), 1, 20, CALL, entropy_known=True
    )
    assert scores.steps[0].entropy is not None


async def test_a_server_that_never_gives_probabilities_is_malformed(up: Replay) -> None:
    up.on("POST", llamacpp.COMPLETION, json_reply({"content": "", "timings": {"cache_n": 0}}))
    with pytest.raises(UpstreamMalformed, match="no 'completion_probabilities'"):
        await llamacpp.backend(up).score(
            llamacpp.scored_context(), 1, 20, CALL, entropy_known=False
        )


async def test_a_step_with_a_character_split_over_tokens_is_scored(up: Replay) -> None:
    ((request, silent),) = llamacpp.exchanges("score_half_character")
    opening = request["logit_bias"][0][0]
    assert "completion_probabilities" not in silent
    ids = tuple(row["id"] for row in llamacpp.RECORDED.json("encode_step3")["tokens"][:-1])
    assert ids[0] == opening
    # A teacher for which the four tokens are equally likely, after any context.
    vocabulary = {
        ids[0]: 0.5,
        ids[1]: 0.25,
        ids[2]: 0.125,
        ids[3]: 0.0625,
        llamacpp.FOLLOWER: 0.0625,
    }

    def answer(seen: Seen) -> Reply:
        ((token, _),) = seen.body["logit_bias"]
        if token == opening:
            return json_reply(silent)
        top = [{"id": i, "logprob": math.log(p)} for i, p in vocabulary.items()]
        row = {"id": token, "logprob": math.log(vocabulary[token])}
        row |= {"top_logprobs": top[: seen.body["n_probs"]]}
        return json_reply(silent | {"completion_probabilities": [row]})

    up.on("POST", llamacpp.COMPLETION, answer)
    context = Context(Segment("", (1,)), [Segment(" 🚀\n", ids)])
    scores = await llamacpp.backend(up).score(context, 1, 3, CALL, entropy_known=False)
    assert scores.steps[0].value == pytest.approx((0.5 * 0.25 * 0.125 * 0.0625) ** 0.25)


def forced_at_once(spelling: dict[int, str]) -> Callable[[Seen], Reply]:
    """A server that decodes any token with probability 1/2, and spells it so."""

    def answer(seen: Seen) -> Reply:
        ((token, _),) = seen.body["logit_bias"]
        row = {"id": token, "logprob": math.log(0.5), "top_logprobs": [{"logprob": -0.1}]}
        if token in spelling:
            row["bytes"] = list(spelling[token].encode())
        return json_reply({"completion_probabilities": [row], "timings": {"cache_n": 0}})

    return answer


async def test_tokens_of_another_tokenizer_end_where_the_server_spells_them(up: Replay) -> None:
    # The embedded demo's: its `tokenizer` cuts digits, and the server's own cuts otherwise.
    up.on("POST", llamacpp.COMPLETION, forced_at_once({7: "1é", 8: "0", 9: "."}))
    context = Context(Segment("", (1,)), [Segment("1é0.", (7, 8, 9))])
    found = await llamacpp.backend(up).token_logprobs(context, CALL)
    assert [token.end for token in found] == [3, 4, 5]
    assert [token.logprob for token in found] == [math.log(0.5)] * 3


@pytest.mark.parametrize(
    ("spelling", "message"),
    [({7: "1", 8: "1"}, "spell another text"), ({7: "1"}, "came without its bytes")],
)
async def test_tokens_that_do_not_spell_the_text_have_no_ends(
    up: Replay, spelling: dict[int, str], message: str
) -> None:
    up.on("POST", llamacpp.COMPLETION, forced_at_once(spelling))
    context = Context(Segment("", (1,)), [Segment("10", (7, 8))])
    with pytest.raises(UpstreamMalformed, match=message):
        await llamacpp.backend(up).token_logprobs(context, CALL)
