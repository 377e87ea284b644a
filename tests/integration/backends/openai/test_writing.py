"""Checks how such a server's streams and greedy texts are read beyond the contract."""

import re
from typing import Any

import pytest

from proxy.backends.base import Call, Sampling
from proxy.errors import UpstreamMalformed
from tests.support.replay import CALL, Recording, Replay, json_reply, pieces_of
from tests.support.servers import openai
from tests.support.servers.contract import Asked, drafts_of


@pytest.mark.parametrize("name", openai.STREAMS)
async def test_text_arrives_as_the_server_sends_it(up: Replay, name: str) -> None:
    drafts = await drafts_of(up, openai.WRITING, openai.VLLM.body(name))
    texts = ["".join(draft.pieces) for draft in drafts[:-1]]
    assert texts == openai.texts_of(openai.VLLM, name)


@pytest.mark.parametrize(
    "recording", [openai.VLLM, openai.LLAMA_CPP_PYTHON], ids=lambda r: r.version
)
async def test_the_tokens_of_a_stream_are_the_reader_s(up: Replay, recording: Recording) -> None:
    pieces = pieces_of(await drafts_of(up, openai.WRITING, recording.body("stream_emoji")))
    segments = await openai.reader().encode(openai.texts_of(recording, "stream_emoji"), Call("t"))
    assert "🎉" in "".join(pieces)
    assert len(pieces) == sum(len(segment.token_ids) for segment in segments)


async def test_a_stream_without_usage_ends_well(up: Replay) -> None:
    drafts = await drafts_of(
        up, openai.WRITING, openai.VLLM.edited("stream_eos", lambda events: events.pop())
    )
    assert (drafts[-1].end, drafts[-1].num_cached_tokens) == ("stop", None)


async def test_together_s_word_for_the_end_is_known(up: Replay) -> None:
    def ended(events: list[Any]) -> None:
        events[-2]["choices"][0]["finish_reason"] = "eos"

    drafts = await drafts_of(up, openai.WRITING, openai.VLLM.edited("stream_eos", ended))
    assert drafts[-1].end == "stop"


async def test_a_seed_is_sent_as_an_int32(up: Replay) -> None:
    await drafts_of(
        up,
        openai.WRITING,
        openai.VLLM.body("stream_eos"),
        asked=Asked(openai.ASKED.context, Sampling(0.6, seed=-2)),
    )
    assert [body["seed"] for body in up.bodies(openai.PATH)] == [2**31 - 2]


DECODED_EOS = re.split(r"(?<=.)(?= )|(?=[,.])", "Yes, I can add it to the end of the sentence.")


@pytest.mark.parametrize(
    ("recording", "name", "texts"),
    [
        (openai.VLLM, "decode_emoji_cut", ["🎉"]),  # two tokens of the next character are left out
        (openai.LLAMA_CPP_PYTHON, "decode_emoji", ["🎉", *"\n#102384765", " #", "B"]),
        (
            openai.VLLM,
            "decode_eos",
            [
                "Yes",
                ",",
                " I",
                " can",
                " add",
                " it",
                " to",
                " the",
                " end",
                " of",
                " the",
                " sentence",
                ".",
            ],
        ),
        (openai.LLAMA_CPP, "connect_decode", None),
    ],
)
async def test_decoded_pieces_are_whole_characters_with_their_tokens_log_probabilities(
    up: Replay, recording: Recording, name: str, texts: list[str] | None
) -> None:
    up.on("POST", openai.PATH, json_reply(recording.body(name)))
    decoded = await openai.writer(up).decode(openai.context("Hi"), 24, CALL)
    choice = recording.json(name)["choices"][0]
    assert "".join(piece.text for piece in decoded.pieces) == choice["text"]
    if texts is not None:
        assert [piece.text for piece in decoded.pieces] == texts
    told = choice["logprobs"]
    found = [x for logprobs in decoded.logprobs for x in logprobs]
    whole = told["token_logprobs"] if "tokens" in told else [e["logprob"] for e in told["content"]]
    assert found == whole[: len(found)]


async def test_a_decoding_without_log_probabilities_is_malformed(up: Replay) -> None:
    reply = openai.VLLM.json("decode_eos")
    reply["choices"][0]["logprobs"] = None
    up.on("POST", openai.PATH, json_reply(reply))
    with pytest.raises(UpstreamMalformed, match="without log-probabilities"):
        await openai.writer(up).decode(openai.context("Hi"), 24, CALL)
