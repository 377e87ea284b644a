"""Checks how llama.cpp's backend renders and encodes beyond the contract."""

from pathlib import Path
from typing import Any

import pytest

from proxy.backends.base import Segment
from proxy.backends.servers.llamacpp import LlamaCpp
from proxy.errors import ConfigError, RequestError, UpstreamFailed, UpstreamMalformed
from proxy.wiring.models import open_service
from tests.support.replay import CALL, QUESTION, Replay, Reply, Seen, json_reply
from tests.support.servers import llamacpp
from tests.support.servers.configured import one_upstream


@pytest.mark.parametrize("props", [{}, {"total_slots": None}, {"total_slots": "many"}, []])
async def test_a_server_without_slots_is_not_llama_cpp_s_own(up: Replay, props: Any) -> None:
    up.on("GET", "/props", json_reply(props))
    up.on("POST", "/tokenize", llamacpp.RECORDED.answering("tokenize_follower"))
    with pytest.raises(UpstreamMalformed, match=r"llama\.cpp's own server"):
        await LlamaCpp.connect(up.client, None)


async def test_a_healthy_server_passes_the_check_and_a_loading_one_does_not(up: Replay) -> None:
    up.on("GET", "/health", json_reply(llamacpp.RECORDED.body("health")))
    await llamacpp.backend(up).check()
    loading = {"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}}
    up.on("GET", "/health", json_reply(loading, 503))
    with pytest.raises(UpstreamFailed, match="Loading model"):
        await llamacpp.backend(up).check()


async def test_a_harmony_model_is_refused_for_its_special_tokens_are_not_written(
    up: Replay, tmp_path: Path
) -> None:
    up.on("GET", "/props", json_reply(llamacpp.RECORDED.body("props")))
    up.on("GET", "/health", json_reply(llamacpp.RECORDED.body("health")))
    up.on("POST", "/tokenize", json_reply({"tokens": [81]}))
    up.on("POST", "/apply-template", json_reply({"prompt": "Is it raining?<|start|>assistant"}))
    config = one_upstream(up, tmp_path, "llamacpp")
    with pytest.raises(ConfigError, match=r"^upstreams\.only\.reasoning: such a server"):
        async with open_service(config):
            pass


async def test_a_character_that_is_split_over_tokens_is_spelled_exactly(up: Replay) -> None:
    up.on("POST", "/tokenize", llamacpp.RECORDED.answering("encode_step3"))
    pieces = [row["piece"] for row in llamacpp.RECORDED.json("encode_step3")["tokens"]]
    assert pieces == [[32, 240, 159], [154], [128], "\n", "a"]
    segments = await llamacpp.backend(up).encode([" 🚀\n"], CALL)
    assert segments == [Segment(" 🚀\n", (15107, 244, 218, 198))]


@pytest.mark.parametrize(
    ("row", "piece"),
    [(0, [32, 240]), (1, [155]), (2, []), (0, " 🚀"), (3, "\r\n"), (3, "")],
)
async def test_tokens_that_do_not_spell_the_text_to_the_byte_are_malformed(
    up: Replay, row: int, piece: Any
) -> None:
    answer = llamacpp.RECORDED.json("encode_step3")
    answer["tokens"][row]["piece"] = piece
    up.on("POST", "/tokenize", json_reply(answer))
    with pytest.RaisesGroup(UpstreamMalformed):
        await llamacpp.backend(up).encode([" 🚀\n"], CALL)


async def test_text_that_ends_in_a_space_can_be_encoded(up: Replay) -> None:
    text = "It is 7. "
    merged = llamacpp.RECORDED.json("encode_trailing_space")["tokens"]
    assert merged[-1] == {"id": 253, "piece": " a"}

    def answer(seen: Seen) -> Reply:
        rest = seen.body["content"].removeprefix("It is 7.")
        ends = {" a": merged[-1:], "": [], " ": [{"id": 216, "piece": " "}]}
        return json_reply({"tokens": merged[:-1] + ends[rest]})

    up.on("POST", "/tokenize", answer)
    assert await llamacpp.backend(up).encode([text], CALL) == [
        Segment(text, (1589, 314, 216, 39, 30, 216))
    ]


async def test_a_template_answer_without_a_prompt_is_malformed(up: Replay) -> None:
    up.on("POST", "/apply-template", json_reply({"error": "no jinja"}))
    with pytest.raises(UpstreamMalformed, match="no 'prompt'"):
        await llamacpp.backend(up).render(QUESTION, CALL)


async def test_ids_alone_are_spelled_by_the_server(up: Replay) -> None:
    up.on("GET", "/v1/models", json_reply({"data": [{"meta": {"n_vocab": 40}}]}))
    up.on("POST", "/detokenize", json_reply({"content": "7+5"}))
    assert await llamacpp.backend(up).prompt_text(Segment("", (39, 27, 37)), CALL) == "7+5"
    assert up.bodies("/detokenize") == [{"tokens": [39, 27, 37]}]
    with pytest.raises(RequestError, match="has 40 tokens, none is 40"):
        await llamacpp.backend(up).prompt_text(Segment("", (39, 40)), CALL)
