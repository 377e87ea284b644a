"""Checks hosted models as judges, and what connecting and checking them asks."""

import math

import pytest

from proxy.backends.judges.judge import JudgeLogprob, JudgeSample
from proxy.backends.judges.openai_chat import OpenAIChatAsker
from proxy.backends.servers.sampling_fields import openai_sampling
from proxy.errors import UpstreamFailed, UpstreamMalformed
from tests.support.replay import CALL, GREEDY, Replay, json_reply
from tests.support.servers import litellm
from tests.support.servers.litellm import failing

SAMPLING = openai_sampling(GREEDY)
pytestmark = litellm.OWN_WARNINGS

STEP = "To find the sum we add the two numbers.\n\n"


def digits_value() -> float:
    """The expected mark, computed here from the recorded candidates."""
    top = litellm.RECORDED.json("chat_digit_logprobs")["choices"][0]["logprobs"]["content"][0][
        "top_logprobs"
    ]
    digits = [(int(x["token"]), math.exp(x["logprob"])) for x in top if x["token"].isdigit()]
    return sum(d * p for d, p in digits) / sum(p for _, p in digits) / 9


@pytest.mark.parametrize("model", [litellm.HOSTED_VLLM, litellm.OPENAI])
async def test_litellm_brings_the_candidates_of_the_first_token(
    up: Replay, hosted: litellm.Hosted, model: str
) -> None:
    up.on("POST", litellm.CHAT, json_reply(litellm.RECORDED.body("chat_digit_logprobs")))
    judge = JudgeLogprob(hosted(model), 20)
    scores = await judge.score(litellm.context(STEP), 1, 20, CALL, entropy_known=False)
    assert scores.steps[0].value == pytest.approx(digits_value())
    assert scores.steps[0].value == pytest.approx(0.40352, abs=1e-5)
    assert scores.num_cached_tokens == litellm.RECORDED.json("chat_digit_logprobs")["usage"][
        "prompt_tokens_details"
    ].get("cached_tokens")
    sent = up.bodies(litellm.CHAT)[0]
    assert (sent["max_tokens"], sent["logprobs"], sent["top_logprobs"]) == (1, True, 20)


@pytest.mark.parametrize("model", [litellm.HOSTED_VLLM, litellm.OPENAI])
async def test_litellm_brings_the_sampled_mark(
    up: Replay, hosted: litellm.Hosted, model: str
) -> None:
    up.on("POST", litellm.CHAT, json_reply(litellm.RECORDED.body("chat_digit")))
    judge = JudgeSample(hosted(model))
    scores = await judge.score(litellm.context(STEP), 1, 20, CALL, entropy_known=False)
    assert scores.steps[0].value == 1 / 9
    assert "logprobs" not in up.bodies(litellm.CHAT)[0]


async def test_the_same_judges_ask_any_openai_compatible_server(up: Replay) -> None:
    asker = OpenAIChatAsker(up.client, "smollm2", SAMPLING)
    up.on("POST", litellm.CHAT, json_reply(litellm.RECORDED.body("chat_digit_logprobs")))
    scores = await JudgeLogprob(asker, 20).score(
        litellm.context(STEP), 1, 20, CALL, entropy_known=False
    )
    assert scores.steps[0].value == pytest.approx(digits_value())
    up.on("POST", litellm.CHAT, json_reply(litellm.RECORDED.body("chat_digit")))
    scores = await JudgeSample(asker).score(litellm.context(STEP), 1, 20, CALL, entropy_known=False)
    assert scores.steps[0].value == 1 / 9
    first, second = up.bodies(litellm.CHAT)
    assert set(first) - set(second) == {"logprobs", "top_logprobs"}


@pytest.mark.parametrize("kind", ["litellm", "openai"])
async def test_a_model_too_weak_to_mark_gives_no_score(
    up: Replay, hosted: litellm.Hosted, kind: str
) -> None:
    asker = hosted() if kind == "litellm" else OpenAIChatAsker(up.client, "smollm2", SAMPLING)
    up.on("POST", litellm.CHAT, json_reply(litellm.RECORDED.body("chat_no_digit_logprobs")))
    with pytest.raises(UpstreamMalformed, match=r"digits have probability 0\.196 only"):
        await JudgeLogprob(asker, 20).score(litellm.context(STEP), 1, 20, CALL, entropy_known=False)
    up.on("POST", litellm.CHAT, json_reply(litellm.RECORDED.body("chat_no_digit")))
    with pytest.raises(UpstreamMalformed, match="last line is not a digit"):
        await JudgeSample(asker).score(litellm.context(STEP), 1, 20, CALL, entropy_known=False)


async def test_connecting_finds_out_what_the_model_can_be(
    up: Replay, hosted: litellm.Hosted
) -> None:
    up.on("POST", litellm.CHAT, json_reply(litellm.RECORDED.body("chat_digit_logprobs")))
    backend = hosted()
    await backend.connect(scores=True)
    assert [judge.scoring for judge in backend.scorers] == ["judge_logprob", "judge_sample"]


async def test_connecting_tells_what_will_be_inexact(
    up: Replay, hosted: litellm.Hosted, caplog: pytest.LogCaptureFixture
) -> None:
    up.on("POST", litellm.CHAT, json_reply(litellm.RECORDED.body("chat_digit_logprobs")))
    await hosted("openai/o3", continuation="instruct").connect(scores=True)
    assert "continues texts by an instruction in words" in caplog.text
    assert "refuses temperature 0" in caplog.text


async def test_an_api_with_a_base_url_is_asked_for_its_models(
    up: Replay, hosted: litellm.Hosted
) -> None:
    up.on("GET", "/models", json_reply({"data": []}))
    await hosted().check()
    up.on("GET", "/models", json_reply({}, 404))
    await hosted().check()
    up.on("GET", "/models", json_reply({}, 503))
    with pytest.raises(UpstreamFailed):
        await hosted().check()
    assert up.bodies(litellm.CHAT) == []


async def test_another_api_is_never_asked_and_its_last_failure_counts_for_a_while(
    up: Replay, hosted: litellm.Hosted, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = json_reply(litellm.RECORDED.body("chat_digit"))
    backend = hosted(lists_models=False)
    await backend.check()
    up.on("POST", litellm.CHAT, failing(503), good, failing(503))
    for attempt in (backend.ask("Q", 1, None, CALL), backend.check(), backend.check()):
        with pytest.raises(UpstreamFailed):
            await attempt
    await backend.ask("Q", 1, None, CALL)
    await backend.check()
    with pytest.raises(UpstreamFailed):
        await backend.ask("Q", 1, None, CALL)
    monkeypatch.setattr("proxy.backends.servers.litellm._FAILURE_COUNTS_S", 0.0)
    await backend.check()
    assert len(up.seen) == 3
