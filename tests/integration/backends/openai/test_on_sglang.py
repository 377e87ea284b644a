"""Checks the backend for OpenAI's completions on SGLang's, which has its own ways to write them."""

from typing import Any

import pytest

from proxy.backends.base import Call, Context, Message, Question
from proxy.backends.servers.echo import Echo
from proxy.backends.servers.openai import OpenAI, sampling_fields
from proxy.backends.tokens.tokenizer import LocalReader, load_tokenizer
from proxy.errors import UpstreamRefused
from tests.integration.backends.openai.test_connecting import CONNECTING
from tests.support.paths import ROOT
from tests.support.replay import Recording, Replay, Reply, Seen, json_reply, stream_reply
from tests.support.servers import openai, sglang

RECORDED = Recording("openai-sglang-0.5.23")
STEPS = ("So \U0001f680 \u00e9 12.\n\n", "85-39=46.\n\n")
QUESTION = Question((Message("user", "What is 85 - 39?"),))
CALL = Call("trajectory-7")


def reader() -> LocalReader:
    return load_tokenizer(str(ROOT / "trainer/reproduce/models/teacher"), None)


def answering(seen: Seen) -> Reply:
    """The recorded answers to the recorded requests."""
    if seen.body == RECORDED.request("vocabulary"):
        return json_reply(RECORDED.body("vocabulary"), 400)
    if seen.body.get("stream"):
        assert seen.body == RECORDED.request("connect_stream")
        return stream_reply(RECORDED.body("connect_stream"))
    return RECORDED.answering(*CONNECTING[1:], "echo_emoji", "echo_tokens")(seen)


async def connected(up: Replay, model: str = "teacher") -> OpenAI:
    up.on("GET", "/v1/models", json_reply(RECORDED.body("models")))
    up.on("POST", openai.PATH, answering)
    sampling = await sampling_fields(up.client, model)
    return await OpenAI.connect(up.client, model, reader(), sampling, scores=True)


async def context() -> Context:
    prompt = await reader().render(QUESTION, CALL)
    return Context(prompt, await reader().encode(STEPS, CALL), question=QUESTION)


async def test_its_echo_gives_the_values_of_its_own_route(up: Replay) -> None:
    """Also where a token is half a character; its offsets are all -1."""
    backend = await connected(up)
    (echo,) = backend.scorers
    scores = await echo.score(await context(), 2, 5, CALL, entropy_known=False)
    up.on("POST", sglang.GENERATE, json_reply(RECORDED.body("generate_emoji")))
    own = await sglang.backend(up).score(await context(), 2, 5, CALL, entropy_known=False)
    assert up.bodies(sglang.GENERATE) == [RECORDED.request("generate_emoji")]
    for ours, theirs in zip(scores.steps, own.steps, strict=True):
        assert ours.value == pytest.approx(theirs.value, rel=1e-5)
        assert ours.entropy == pytest.approx(theirs.entropy, rel=1e-5)
        assert ours.num_tokens == theirs.num_tokens
    assert scores.next_entropy == pytest.approx(own.next_entropy, rel=1e-5)


async def test_the_log_probabilities_of_half_characters_have_their_places(up: Replay) -> None:
    backend = await connected(up)
    (echo,) = backend.scorers
    assert isinstance(echo, Echo)
    tokens = await echo.token_logprobs(await context(), CALL)
    assert [token.end for token in tokens] == [2, 3, 5, 6, 8, 9, 11]


async def test_more_candidates_than_tokens_are_not_asked_for(up: Replay) -> None:
    (echo,) = (await connected(up)).scorers
    num_seen = len(up.seen)
    with pytest.raises(UpstreamRefused, match="entropy_top_k: 394 would work"):
        await echo.score(await context(), 2, 395, CALL, entropy_known=False)
    assert len(up.seen) == num_seen


async def test_a_model_that_it_does_not_serve_is_refused_though_it_would_answer(
    up: Replay,
) -> None:
    up.on("GET", "/v1/models", json_reply(RECORDED.body("models")))
    up.on("POST", openai.PATH, lambda seen: answering(with_model(seen, "teacher")))
    for model, served in (("teacher", True), ("teacher:adapter", True), ("nonesuch", False)):
        sampling = await sampling_fields(up.client, model)
        backend = await OpenAI.connect(up.client, model, reader(), sampling, scores=False)
        if served:
            await backend.check()
            continue
        with pytest.raises(UpstreamRefused, match="not the configured model 'nonesuch'"):
            await backend.check()


def with_model(seen: Seen, model: str) -> Seen:
    body: dict[str, Any] = {**seen.body, "model": model}
    return Seen(seen.connection, seen.path, seen.headers, body)


@pytest.mark.parametrize("owner", ["vllm", "sglang", "llamacpp"])
async def test_the_kind_that_suits_a_known_server_better_is_named(
    up: Replay, owner: str, caplog: pytest.LogCaptureFixture
) -> None:
    up.on("GET", "/v1/models", json_reply({"data": [{"id": "teacher", "owned_by": owner}]}))
    up.on("POST", openai.PATH, stream_reply(RECORDED.body("connect_stream")))
    with caplog.at_level("INFO"):
        sampling = await sampling_fields(up.client, "teacher")
    assert f"its server is {owner}, and `kind: {owner}` " in caplog.text

    def without_echo(seen: Seen) -> Reply:
        if seen.body.get("stream"):
            return stream_reply(RECORDED.body("connect_stream"))
        return json_reply({"error": {"message": "no log-probabilities here"}}, 400)

    up.on("POST", openai.PATH, without_echo)
    backend = await OpenAI.connect(up.client, "teacher", reader(), sampling, scores=True)
    assert backend.why_not["echo"].endswith(sampling_advice(caplog.text, owner))


def sampling_advice(logged: str, owner: str) -> str:
    """The advice as it was logged first."""
    (line, *_) = (line for line in logged.splitlines() if f"`kind: {owner}`" in line)
    return line[line.index("its server is") :]
