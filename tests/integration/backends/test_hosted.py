"""Hosted student and teacher from a configuration file's values to the client's answer."""

from typing import Any

import pytest

from proxy.config import Config
from proxy.errors import ConfigError, UpstreamRefused
from proxy.wiring.models import open_service
from tests.support.proxy.api import in_process
from tests.support.replay import Recording, Replay, Reply, Seen, json_reply, stream_reply
from tests.support.servers import litellm

pytestmark = litellm.OWN_WARNINGS

VLLM = Recording("vllm-0.32.0")
MODEL = "motab/hosted"
CHAT = "/v1/chat/completions"
# The recorded mark is 0.4035.
JUDGED = {"boundary": "static", "base_threshold": 0.3}
STUDENTS_TEXT = "12 + 30 = 32."


def configured(up: Replay, params: dict[str, Any] | None = None, **teacher: Any) -> Config:
    hosted = {
        "kind": "litellm",
        "model": "hosted_vllm/smollm2",
        "base_url": f"{up.client.base_url}/v1",
        "api_key": "secret",
        "retries": {"attempts": 1},
    }
    pair = {"student": "s", "teacher": "t", "params": JUDGED if params is None else params}
    values = {"upstreams": {"s": hosted, "t": {**hosted, **teacher}}, "models": {MODEL: pair}}
    return Config.model_validate(values)


def plays(up: Replay, *, logprobs: str = "chat_digit_logprobs", mark: str = "chat_digit") -> None:
    """The server writes, corrects and marks as it was recorded."""

    def answer(seen: Seen) -> Reply:
        if seen.body.get("stream"):
            continued = seen.body.get("continue_final_message")
            return stream_reply(VLLM.body("chat_continued" if continued else "chat_stop"))
        return json_reply(VLLM.body(logprobs if "logprobs" in seen.body else mark))

    up.on("POST", CHAT, answer)


async def answered(config: Config, **motab: Any) -> Any:
    question = [{"role": "user", "content": "What is 12 + 30? Answer in one sentence."}]
    body = {"model": MODEL, "messages": question, "temperature": 0.0, "motab": motab}
    async with open_service(config) as service, in_process(service) as client:
        response = await client.post("/v1/motab/chat/completions", json=body)
    return response.json()


async def test_a_hosted_judge_lets_a_good_step_pass(up: Replay) -> None:
    plays(up)
    found = await answered(configured(up))
    (choice,) = found["choices"]
    assert choice["message"]["content"] == STUDENTS_TEXT
    assert choice["motab"]["scoring"] == "judge_logprob"
    (step,) = choice["motab"]["steps"]
    assert step["value"] == pytest.approx(0.40352, abs=1e-5)
    assert (step["boundary"], step["entropy"], step["safe"]) == (0.3, None, True)
    assert found["usage"]["motab"]["score_calls"] == 1


async def test_a_hosted_teacher_corrects_what_it_marked_down(up: Replay) -> None:
    plays(up)
    found = await answered(configured(up), scoring="judge_sample")
    (choice,) = found["choices"]
    assert choice["motab"]["scoring"] == "judge_sample"
    assert choice["motab"]["steps"][0]["value"] == pytest.approx(1 / 9)
    # The breach is the first step, so the teacher answers the bare question.
    assert choice["message"]["content"] == f"{STUDENTS_TEXT}\n\nHowever,\n\n{STUDENTS_TEXT}"
    assert found["usage"]["motab"]["correction_calls"] == 1


async def test_where_no_log_probabilities_come_the_mark_is_sampled(up: Replay) -> None:
    plays(up, logprobs="chat_digit")
    found = await answered(configured(up))
    assert found["choices"][0]["motab"]["scoring"] == "judge_sample"


async def test_a_raw_prompt_is_a_400(up: Replay) -> None:
    plays(up)
    async with open_service(configured(up)) as service, in_process(service) as client:
        response = await client.post("/v1/completions", json={"model": MODEL, "prompt": "Q"})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "prompt")


@pytest.mark.parametrize(
    ("params", "where"),
    [
        ({}, "models.motab/hosted.params.boundary: "),
        ({"boundary": "static"}, "models.motab/hosted.params.base_threshold: "),
        ({"base_threshold": 0.5}, "models.motab/hosted.params.boundary: "),
        ({**JUDGED, "scoring": "echo"}, "models.motab/hosted.params.scoring: "),
        ({**JUDGED, "reference": "7"}, "models.motab/hosted.params.reference: "),
        ({**JUDGED, "corrections": 2}, "models.motab/hosted.params.corrections: "),
    ],
)
async def test_a_pair_whose_every_request_would_be_a_400_does_not_start(
    up: Replay, params: dict[str, Any], where: str
) -> None:
    plays(up)
    with pytest.raises(ConfigError) as refusal:
        await answered(configured(up, params))
    assert str(refusal.value).startswith(where)
    assert "\n" not in str(refusal.value)


async def test_a_pair_that_does_not_score_needs_no_boundary(up: Replay) -> None:
    plays(up)
    found = await answered(configured(up, {"method": "teacher"}))
    assert found["choices"][0]["message"]["content"] == STUDENTS_TEXT


async def test_a_student_that_tells_no_log_probabilities_does_not_start_with_skd(
    up: Replay,
) -> None:
    plays(up)
    with pytest.raises(ConfigError, match=r"params.method: method 'skd' needs the student's log-"):
        await answered(configured(up, {"method": "skd"}))


async def test_a_teacher_that_cannot_mark_does_not_start_a_pair(up: Replay) -> None:
    plays(up, logprobs="chat_no_digit_logprobs", mark="chat_no_digit")
    with pytest.raises(ConfigError, match=r"params.scoring: upstream 't' has no way to score"):
        await answered(configured(up))


async def test_how_a_teacher_continues_must_be_known(up: Replay) -> None:
    plays(up)
    with pytest.raises(ConfigError, match=r"^upstreams.t.continuation: must be prefill, "):
        await answered(configured(up, model="openai/smollm2"))
    found = await answered(configured(up, model="openai/smollm2", continuation="instruct"))
    assert found["choices"][0]["message"]["content"] == STUDENTS_TEXT


async def test_a_hosted_api_that_refuses_the_key_does_not_start(up: Replay) -> None:
    up.on("POST", CHAT, json_reply({"error": {"message": "bad key", "code": 401}}, 401))
    with pytest.raises(UpstreamRefused, match="bad key"):
        await answered(configured(up))
