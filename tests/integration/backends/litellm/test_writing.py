"""Checks how a hosted chat model writes and continues, through two providers of litellm."""

import pytest

from proxy.backends.servers.litellm import CONTINUE_PROMPT
from proxy.errors import RequestError, UpstreamRefused
from tests.support.replay import CALL, Replay, stream_reply, text_of
from tests.support.servers import litellm
from tests.support.servers.litellm import drafts_of

pytestmark = litellm.OWN_WARNINGS

STEP = "To find the sum we add the two numbers.\n\n"


@pytest.mark.parametrize("model", [litellm.HOSTED_VLLM, litellm.OPENAI])
async def test_a_write_carries_the_key_and_the_session(
    up: Replay, hosted: litellm.Hosted, model: str
) -> None:
    up.on("POST", litellm.CHAT, stream_reply(litellm.RECORDED.body("chat_stop")))
    await drafts_of(hosted(model), litellm.context())
    assert up.seen[0].headers["authorization"] == "Bearer secret"
    assert up.seen[0].headers["x-session-id"] == CALL.session_id


async def test_a_longer_answer_comes_whole_and_piece_by_piece(
    up: Replay, hosted: litellm.Hosted
) -> None:
    up.on("POST", litellm.CHAT, stream_reply(litellm.RECORDED.body("chat_paragraphs")))
    drafts = await drafts_of(hosted(), litellm.context())
    deltas = [
        e["choices"][0]["delta"] for e in litellm.RECORDED.events("chat_paragraphs") if e["choices"]
    ]
    assert text_of(drafts) == "".join(delta.get("content") or "" for delta in deltas)
    assert len(drafts) > 80


async def test_vllm_continues_the_answer_and_the_seam_has_no_space_twice(
    up: Replay, hosted: litellm.Hosted
) -> None:
    up.on("POST", litellm.CHAT, stream_reply(litellm.RECORDED.body("chat_continued")))
    drafts = await drafts_of(hosted(), litellm.context(STEP, "12 + 30 =\n\n"), max_tokens=30)
    assert up.bodies(litellm.CHAT) == [litellm.RECORDED.request("chat_continued") | litellm.NEUTRAL]
    assert text_of(drafts) == "32"  # " 32" came


async def test_a_model_that_is_told_to_continue_sees_the_text_and_the_words(
    up: Replay, hosted: litellm.Hosted
) -> None:
    up.on("POST", litellm.CHAT, stream_reply(litellm.RECORDED.body("chat_instructed")))
    await drafts_of(hosted(continuation="instruct"), litellm.context(STEP), max_tokens=30)
    assert up.bodies(litellm.CHAT) == [
        litellm.RECORDED.request("chat_instructed") | litellm.NEUTRAL
    ]
    assert up.bodies(litellm.CHAT)[0]["messages"][-1] == {
        "role": "user",
        "content": CONTINUE_PROMPT,
    }


async def test_a_prefilled_answer_is_marked_as_one(up: Replay, hosted: litellm.Hosted) -> None:
    up.on("POST", litellm.CHAT, stream_reply(litellm.RECORDED.body("chat_continued")))
    await drafts_of(hosted(litellm.OPENAI, continuation="prefill"), litellm.context(STEP))
    begun = {"role": "assistant", "content": STEP.rstrip(), "prefix": True}
    assert up.bodies(litellm.CHAT)[0]["messages"][1:] == [begun]


@pytest.mark.parametrize(
    ("model", "continuation"),
    [
        (litellm.HOSTED_VLLM, "continue_final_message"),
        ("anthropic/claude-sonnet-4-5", "prefill"),
        ("deepseek/deepseek-chat", "prefill"),
        ("openrouter/openai/gpt-oss-120b", None),
        (litellm.OPENAI, None),
    ],
)
async def test_litellms_list_of_models_says_how_some_continue(
    hosted: litellm.Hosted, model: str, continuation: str | None
) -> None:
    assert hosted(model).continuation == continuation


async def test_a_model_of_which_nobody_says_how_it_continues_is_not_asked_to(
    up: Replay, hosted: litellm.Hosted
) -> None:
    with pytest.raises(RequestError, match="cannot continue a text: set `continuation`"):
        await drafts_of(hosted(litellm.OPENAI), litellm.context(STEP))
    assert up.seen == []


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
@pytest.mark.parametrize("model", [litellm.HOSTED_VLLM, litellm.OPENAI])
async def test_thoughts_that_are_sent_apart_are_text_in_think_tags(
    up: Replay, hosted: litellm.Hosted, model: str, field: str
) -> None:
    chunks = (
        litellm.chunk('{"role":"assistant","content":""}'),
        litellm.chunk(f'{{"{field}":"Is it"}}'),
        litellm.chunk(f'{{"{field}":" 42?"}}'),
        litellm.chunk('{"content":"It is."}'),
        litellm.chunk("{}", '"stop"'),
        litellm.DONE,
    )
    up.on("POST", litellm.CHAT, stream_reply(*chunks))
    assert text_of(await drafts_of(hosted(model), litellm.context())) == (
        "<think>\nIs it 42?\n</think>\n\nIt is."
    )
    assert (
        text_of(await drafts_of(hosted(model, keep_reasoning=False), litellm.context())) == "It is."
    )


async def test_a_text_that_repeats_itself_is_not_cut_off(
    up: Replay, hosted: litellm.Hosted
) -> None:
    chunks = [litellm.chunk('{"content":" again"}')] * 300
    up.on("POST", litellm.CHAT, stream_reply(*chunks, litellm.chunk("{}", '"stop"'), litellm.DONE))
    assert text_of(await drafts_of(hosted(), litellm.context())) == " again" * 300


async def test_a_chat_api_gives_no_log_probabilities_while_it_writes(
    hosted: litellm.Hosted,
) -> None:
    with pytest.raises(UpstreamRefused, match="log-probability"):
        await hosted().decode(litellm.context(), 4, CALL)


async def test_a_withheld_answer_ends_by_the_content_filter(
    up: Replay, hosted: litellm.Hosted
) -> None:
    begun, end = litellm.chunk('{"content":"12 "}'), litellm.chunk("{}", '"content_filter"')
    up.on("POST", litellm.CHAT, stream_reply(begun, end, litellm.DONE))
    drafts = await drafts_of(hosted(), litellm.context())
    assert text_of(drafts) == "12 "
    assert drafts[-1].end == "content_filter"
