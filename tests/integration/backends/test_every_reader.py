"""Holds every kind of server that tokenises to one contract: how it connects and reads text."""

from typing import Any

import pytest

from proxy.backends.base import Question, Segment
from proxy.errors import UpstreamMalformed
from tests.support.replay import CALL, QUESTION, Replay, json_reply
from tests.support.servers.contract import PARIS, ReadingContract
from tests.support.servers.every import READING, over, over_cases


@over(READING)
async def test_connecting_learns_the_token_that_stands_for_text_that_follows(
    up: Replay, server: ReadingContract
) -> None:
    server.connected(up)
    connected = await server.connect(up)
    up.on("POST", server.path, server.encoding)
    assert await connected.encode([s.text for s in server.encoded], CALL) == [*server.encoded]


@over_cases(READING, lambda server: server.unconnectable)
async def test_a_tokenizer_that_does_not_say_how_it_cuts_is_malformed(
    up: Replay, server: ReadingContract, case: Any
) -> None:
    server.connected(up)
    up.on("POST", server.path, json_reply(case))
    with pytest.raises(UpstreamMalformed):
        await server.connect(up)


@over(READING)
async def test_messages_are_rendered_by_the_server_s_own_template(
    up: Replay, server: ReadingContract
) -> None:
    server.rendering(up)
    assert await server.reader(up, None).render(QUESTION, CALL) == server.rendered


@over(READING)
async def test_a_configured_template_is_rendered_here(up: Replay, server: ReadingContract) -> None:
    question, answer, rendered = server.templated
    up.on("POST", server.path, answer)
    assert await server.reader(up, server.template).render(question, CALL) == rendered


@over(READING)
async def test_a_raw_prompt_stands_as_it_is_and_gets_the_tokenizer_s_specials(
    up: Replay, server: ReadingContract
) -> None:
    up.on("POST", server.path, server.raw_prompt)
    rendered = await server.reader(up, None).render(Question(prompt=PARIS.text), CALL)
    assert rendered == PARIS
    (body,) = up.bodies(server.path)
    assert body.get("add_special_tokens", body.get("add_special")) is True


@over(READING)
async def test_markup_is_read_as_special_tokens(up: Replay, server: ReadingContract) -> None:
    up.on("POST", server.path, json_reply({"tokens": [5, 6]}))
    markup = await server.reader(up, None).markup("<|end|>", CALL)
    assert markup == Segment("<|end|>", (5, 6))
    assert up.bodies(server.path) == [server.markup_request]


@over(READING)
async def test_steps_are_encoded_as_in_running_text_and_in_their_order(
    up: Replay, server: ReadingContract
) -> None:
    up.on("POST", server.path, server.encoding)
    encoded = await server.reader(up, None).encode([s.text for s in server.encoded], CALL)
    assert encoded == [*server.encoded]


@over(READING)
async def test_text_that_looks_like_a_special_token_stays_text(
    up: Replay, server: ReadingContract
) -> None:
    up.on("POST", server.path, server.special_text)
    encoded = await server.reader(up, None).encode(["<|im_end|>\nHi"], CALL)
    assert encoded == [Segment("<|im_end|>\nHi", server.special_text_ids)]


@over(READING)
async def test_no_text_is_no_token_and_no_texts_are_no_request(
    up: Replay, server: ReadingContract
) -> None:
    if server.no_text is not None:
        up.on("POST", server.path, server.no_text)
    reader = server.reader(up, None)
    assert await reader.encode([], CALL) == []
    assert up.seen == []
    assert await reader.encode([""], CALL) == [Segment("", ())]
    assert len(up.seen) == (server.no_text is not None)


@pytest.mark.parametrize("answer", [{}, {"count": 2}, {"tokens": None}, [], [1, 2], "ids", None])
@over(READING)
async def test_a_tokenizer_s_answer_without_tokens_is_malformed(
    up: Replay, server: ReadingContract, answer: Any
) -> None:
    up.on("POST", server.path, json_reply(answer))
    with pytest.raises(UpstreamMalformed, match=f"{server.path} is not what was asked for"):
        await server.reader(up, None).render(Question(prompt="Hi"), CALL)
    with pytest.RaisesGroup(UpstreamMalformed, allow_unwrapped=True):
        await server.reader(up, None).encode(["42"], CALL)
