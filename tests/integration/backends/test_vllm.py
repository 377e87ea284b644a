import asyncio
import math
from collections.abc import Callable
from contextlib import aclosing, suppress
from typing import Any

import orjson
import pytest

from proxy.backends.base import (
    Context,
    Draft,
    Message,
    Question,
    Sampling,
    ScoredToken,
    Scores,
    Segment,
)
from proxy.backends.servers.vllm import Vllm
from proxy.backends.tokens.chat_template import ChatTemplate
from proxy.errors import (
    ContextExceeded,
    MotabError,
    UpstreamError,
    UpstreamFailed,
    UpstreamMalformed,
    UpstreamRefused,
    UpstreamUnreachable,
)
from tests.support.replay import (
    CALL,
    GREEDY,
    QUESTION,
    Recording,
    Replay,
    Reply,
    Seen,
    cut,
    entropy_from,
    json_reply,
    pieces_of,
    replay,
    steps_at_the_end,
    stream_reply,
)

VLLM = Recording("vllm-0.32.0")
MODEL, FOLLOWER = "smollm2", 81
COMPLETIONS = "/v1/completions"

STEPS = ("7+5 = 12.\n\n", "So 🚀 é 12")
SCORED_IDS: list[int] = VLLM.request("score_two_steps")["prompt"]
NUM_PROMPT, NUM_STEP_1, NUM_STEP_2 = 37, 10, 8

# An omitted one would be taken from the model's generation_config.json.
NEUTRAL = {
    "model": MODEL,
    "temperature": 0.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}


def backend(up: Replay, template: str | None = None) -> Vllm:
    return Vllm(up.client, MODEL, None if template is None else ChatTemplate(template), FOLLOWER)


def scored_context(*lengths: int) -> Context:
    """The recorded scoring prompt; its last tokens are cut into steps of these lengths."""
    return steps_at_the_end(SCORED_IDS, *lengths)


# Connecting.


async def test_connecting_learns_the_token_that_stands_for_text_that_follows(up: Replay) -> None:
    up.on("POST", "/tokenize", VLLM.answering("tokenize_follower", "tokenize_follower_alone"))
    connected = await Vllm.connect(up.client, MODEL, None)
    up.on("POST", "/tokenize", VLLM.answering("encode_step1"))
    (step,) = await connected.encode([STEPS[0]], CALL)
    assert step.token_ids[-2:] == (198, 198)


async def test_a_tokenizer_that_puts_a_space_before_every_text_is_refused(up: Replay) -> None:
    alone = VLLM.json("tokenize_follower_alone") | {"token_strs": ["\u2581a"]}
    up.on("POST", "/tokenize", json_reply(VLLM.body("tokenize_follower")), json_reply(alone))
    with pytest.raises(UpstreamRefused, match=r"every text .* set the upstream's `tok"):
        await Vllm.connect(up.client, MODEL, None)
    # It does not matter where another tokenizer reads.
    await Vllm.connect(up.client, MODEL, None, reads=False)


@pytest.mark.parametrize("missing", [{"token_strs": None}, {"tokens": []}, {"tokens": None}])
async def test_a_tokenizer_that_does_not_say_how_it_cuts_is_malformed(
    up: Replay, missing: Any
) -> None:
    up.on("POST", "/tokenize", json_reply(VLLM.json("tokenize_follower") | missing))
    with pytest.raises(UpstreamMalformed):
        await Vllm.connect(up.client, MODEL, None)


async def test_the_served_model_is_found(up: Replay) -> None:
    up.on("GET", "/v1/models", json_reply(VLLM.body("models")))
    await backend(up).check()


async def test_another_served_model_is_refused_and_both_are_named(up: Replay) -> None:
    up.on("GET", "/v1/models", json_reply(VLLM.body("models")))
    with pytest.raises(UpstreamRefused, match="serves smollm2, not the configured model 'qwen'"):
        await Vllm(up.client, "qwen", None, FOLLOWER).check()


async def test_an_odd_list_of_models_is_our_error(up: Replay) -> None:
    up.on("GET", "/v1/models", json_reply({"models": []}))
    with pytest.raises(UpstreamError):
        await backend(up).check()


# Rendering and encoding.


async def test_messages_are_rendered_by_the_server_s_own_template(up: Replay) -> None:
    up.on("POST", "/tokenize", VLLM.answering("render_chat"))
    rendered = await backend(up).render(QUESTION, CALL)
    assert rendered.token_ids == tuple(SCORED_IDS[:NUM_PROMPT])


async def test_the_rendered_prompt_can_be_read_as_text(up: Replay) -> None:
    up.on("POST", "/detokenize", VLLM.answering("detokenize"))
    rendered = Segment("", tuple(SCORED_IDS[:NUM_PROMPT]))
    text = await backend(up).prompt_text(rendered, CALL)
    assert text.endswith("What is 7+5?<|im_end|>\n<|im_start|>assistant\n")


async def test_a_prompt_rendered_here_is_known_as_text(up: Replay) -> None:
    assert await backend(up).prompt_text(Segment("Hi", (5,)), CALL) == "Hi"
    assert not up.seen


async def test_markup_is_read_as_special_tokens(up: Replay) -> None:
    up.on("POST", "/tokenize", json_reply({"tokens": [5, 6]}))
    assert await backend(up).markup("<|end|>", CALL) == Segment("<|end|>", (5, 6))
    (body,) = up.bodies("/tokenize")
    assert body == {"model": MODEL, "prompt": "<|end|>", "add_special_tokens": False}


async def test_special_tokens_are_text_where_they_are_asked_for(up: Replay) -> None:
    drafts = await drafts_of(
        up,
        VLLM.body("interval1_special_shown"),
        sampling=Sampling(temperature=0.0, special_tokens=True),
    )
    assert pieces_of(drafts) == ["<|im_start|>"] * 6
    (body,) = up.bodies(COMPLETIONS)
    recorded = VLLM.request("interval1_special_shown")
    for name in ("skip_special_tokens", "spaces_between_special_tokens"):
        assert body[name] is recorded[name] is False


async def test_a_raw_prompt_stands_as_it_is_and_gets_the_tokenizer_s_specials(up: Replay) -> None:
    up.on("POST", "/tokenize", VLLM.answering("render_prompt"))
    text = "Paris is nice.\n\nBerlin is"
    rendered = await backend(up).render(Question(prompt=text), CALL)
    assert rendered == Segment(text, (38634, 314, 9239, 30, 198, 198, 24726, 4226, 314))
    assert up.bodies("/tokenize")[0]["add_special_tokens"] is True


async def test_a_configured_template_is_rendered_here(up: Replay) -> None:
    up.on("POST", "/tokenize", VLLM.answering("render_prompt"))
    templated = backend(up, "{{ messages[0].content }}\n\n{{ messages[-1].content }} is")
    question = Question((Message("system", "Paris is nice."), Message("user", "Berlin")))
    rendered = await templated.render(question, CALL)
    assert rendered.text == "Paris is nice.\n\nBerlin is"
    assert rendered.token_ids[-1] == 314


async def test_steps_are_encoded_as_in_running_text_and_in_their_order(up: Replay) -> None:
    up.on("POST", "/tokenize", VLLM.answering("encode_step1", "encode_step2", "encode_step3"))
    texts = (*STEPS, "42")
    segments = await backend(up).encode(texts, CALL)
    assert segments == [
        Segment(texts[0], (39, 27, 37, 446, 216, 33, 34, 30, 198, 198)),
        Segment(texts[1], (2931, 15107, 244, 218, 26411, 216, 33, 34)),
        Segment(texts[2], (36, 34)),
    ]
    # As the model writes them: the scored prompt is the rendered one and then these.
    assert [i for s in segments[:2] for i in s.token_ids] == SCORED_IDS[NUM_PROMPT:]


async def test_no_text_is_no_token_and_no_texts_are_no_request(up: Replay) -> None:
    up.on("POST", "/tokenize", VLLM.answering("encode_empty"))
    assert await backend(up).encode([], CALL) == []
    assert up.seen == []
    assert await backend(up).encode([""], CALL) == [Segment("", ())]


@pytest.mark.parametrize("answer", [{"count": 2}, {"tokens": None}, [1, 2], "ids", None])
async def test_a_tokenizer_s_answer_without_tokens_is_malformed(up: Replay, answer: Any) -> None:
    up.on("POST", "/tokenize", json_reply(answer))
    with pytest.raises(UpstreamMalformed):
        await backend(up).render(QUESTION, CALL)
    with pytest.RaisesGroup(UpstreamMalformed):
        await backend(up).encode(["42"], CALL)


async def test_text_that_looks_like_a_special_token_stays_text(up: Replay) -> None:
    up.on("POST", "/tokenize", VLLM.answering("encode_special_text"))
    segments: list[Segment] = []
    with suppress(ExceptionGroup):  # to refuse such a text is as good
        segments = await backend(up).encode(["<|im_end|>\nHi"], CALL)
    assert not [segment for segment in segments if 2 in segment.token_ids]


# Writing.

LENGTH = "To boil an egg:\n\n1. Boil the egg in a double boiler or under a heavy-bottled kettle"
HELD = "1. Boil the egg until it is fully cooked.\n2. Remove the egg from the"
STREAMS = {
    "length": (LENGTH, 24, "length"),
    "emoji": ("🎉🌍🎉🌍🎉", 16, "length"),
    "emoji_cut": ("🎉", 5, "length"),
    "eos": ("Yes.", 2, "stop"),
    "first_eos": ("1. Boil the", 5, "stop"),
    "stop": (" nice", 4, "stop"),  # the stop string's tokens were written, its text is cut off
    "stop_not_reached": (HELD, 20, "length"),
    "special": ("", 6, "length"),
}
# The streams of a server that sends a chunk a token, and of one that sends a chunk 8 tokens.
ALL_STREAMS = [f"interval{n}_{name}" for n in (1, 8) for name in STREAMS]


async def drafts_of(up: Replay, *chunks: bytes, sampling: Sampling = GREEDY) -> list[Draft]:
    up.on("POST", COMPLETIONS, stream_reply(*chunks))
    context = Context(Segment("", (1, 2, 3)))
    return [draft async for draft in backend(up).write(context, sampling, 24, CALL)]


@pytest.mark.parametrize("name", ALL_STREAMS)
async def test_a_stream_is_its_text_in_one_piece_a_token(up: Replay, name: str) -> None:
    text, num_tokens, end = STREAMS[name.partition("_")[2]]
    drafts = await drafts_of(up, VLLM.body(name))
    pieces = pieces_of(drafts)
    assert "".join(pieces) == text
    assert len(pieces) == num_tokens
    assert [draft.end for draft in drafts] == [None] * (len(drafts) - 1) + [end]


@pytest.mark.parametrize("name", ["length", "emoji", "emoji_cut", "first_eos"])
async def test_each_piece_is_its_own_token_s_text_even_where_a_chunk_has_several(
    up: Replay, name: str
) -> None:
    tokens = [t for e in VLLM.events(f"interval1_{name}") for t in tokens_of(e)]
    pieces = pieces_of(await drafts_of(up, VLLM.body(f"interval8_{name}")))
    assert pieces == tokens[: len(pieces)]
    assert len([piece for piece in pieces if piece]) > 1 or name == "emoji_cut"


def tokens_of(event: Any) -> list[str]:
    return event["choices"][0]["logprobs"]["tokens"] if event["choices"] else []


async def test_a_character_comes_whole_with_the_token_that_completes_it(up: Replay) -> None:
    pieces = pieces_of(await drafts_of(up, VLLM.body("interval8_emoji")))
    assert pieces == ["", "", "🎉", "", "", "🌍"] * 2 + ["", "", "🎉", ""]


async def test_text_arrives_as_the_server_sends_it(up: Replay) -> None:
    drafts = await drafts_of(up, VLLM.body("interval8_length"))
    assert [len(draft.pieces) for draft in drafts] == [1, 8, 8, 7, 0]


@pytest.mark.parametrize("name", ["interval1_second_eos", "interval8_second_eos"])
async def test_every_end_token_is_no_text(up: Replay, name: str) -> None:
    pieces = pieces_of(await drafts_of(up, VLLM.body(name)))
    assert pieces == ["1", ".", " Bo", "il", " the"]


async def test_the_drafts_are_the_same_when_every_byte_comes_alone(up: Replay) -> None:
    body = VLLM.body("interval8_emoji")
    whole = await drafts_of(up, body)
    alone = await drafts_of(up, *(body[i : i + 1] for i in range(len(body))))
    assert alone == whole


@pytest.mark.parametrize("name", ALL_STREAMS)
async def test_the_drafts_are_the_same_however_the_bytes_are_cut(up: Replay, name: str) -> None:
    body = VLLM.body(name)
    whole = await drafts_of(up, body)
    for seed in range(5):
        assert await drafts_of(up, *cut(body, seed)) == whole


async def test_cached_prompt_tokens_come_with_the_last_draft(up: Replay) -> None:
    drafts = await drafts_of(up, VLLM.body("prompt_cached"))
    assert [draft.num_cached_tokens for draft in drafts] == [None, None, 384]


async def test_a_server_that_does_not_tell_of_its_cache_is_not_taken_for_an_empty_one(
    up: Replay,
) -> None:
    def untold(events: list[Any]) -> None:
        del events[-1]["usage"]["prompt_tokens_details"]

    drafts = await drafts_of(up, VLLM.edited("interval1_eos", untold))
    assert (drafts[-1].end, drafts[-1].num_cached_tokens) == ("stop", None)


async def test_a_write_says_every_sampling_field(up: Replay) -> None:
    sampling = Sampling(0.6, 0.95, 1, (".\n\n", "END"))
    await drafts_of(up, VLLM.body("interval1_eos"), sampling=sampling)
    (sent,) = up.bodies(COMPLETIONS)
    assert sent == {
        **NEUTRAL,
        "temperature": 0.6,
        "top_p": 0.95,
        "prompt": [1, 2, 3],
        "max_tokens": 24,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
        "logprobs": 0,
        "stop": [".\n\n", "END"],
        "seed": 1,
    }


@pytest.mark.parametrize("name", ALL_STREAMS)
async def test_each_piece_brings_its_tokens_log_probability_where_asked_for(
    up: Replay, name: str
) -> None:
    asked = Sampling(0.0, logprobs=True)
    drafts = await drafts_of(up, VLLM.body(name), sampling=asked)
    pieces = pieces_of(drafts)
    told = [x for draft in drafts for x in draft.logprobs or ()]
    events = [
        orjson.loads(line[6:])
        for line in VLLM.body(name).splitlines()
        if line.startswith(b"data: {")
    ]
    recorded = [
        x
        for event in events
        for choice in event["choices"]
        for x in choice["logprobs"]["token_logprobs"]
    ]
    # The end token's, which is no text, is left out.
    assert [x for one in told for x in one] == recorded[: len(pieces)]
    assert len(told) == len(pieces)
    assert all(draft.logprobs is None for draft in await drafts_of(up, VLLM.body(name)))


async def test_a_write_without_a_seed_names_none(up: Replay) -> None:
    await drafts_of(up, VLLM.body("interval1_eos"))
    assert "seed" not in up.bodies(COMPLETIONS)[0]


@pytest.mark.parametrize("name", [n for n in ALL_STREAMS if n[10:] not in ("first_eos", "special")])
async def test_the_recorded_streams_answer_what_is_still_asked(up: Replay, name: str) -> None:
    request = VLLM.request(name)
    up.on("POST", COMPLETIONS, stream_reply(VLLM.body(name)))
    context = Context(Segment("", tuple(request["prompt"])))
    stop, seed = tuple(request["stop"]), request.get("seed")
    sampling = Sampling(request["temperature"], request["top_p"], seed, stop)
    async for _ in backend(up).write(context, sampling, request["max_tokens"], CALL):
        pass
    assert up.bodies(COMPLETIONS) == [request]


async def test_closing_a_write_cancels_it_at_the_server(up: Replay) -> None:
    first_events = VLLM.body("interval8_length").split(b"data: ")[:3]
    up.on("POST", COMPLETIONS, stream_reply(b"data: ".join(first_events), hold=True))
    writing = backend(up).write(Context(Segment("", (1,))), GREEDY, 24, CALL)
    async with aclosing(writing):
        assert (await anext(writing)).pieces == ("To",)
    async with asyncio.timeout(2):
        await up.left.wait()
    assert [code for *_, code in up.observed] == ["cancelled"]


# What may go wrong in a stream.


async def test_an_error_in_the_stream_has_failed_though_done_comes(up: Replay) -> None:
    events = VLLM.body("interval8_length").split(b"\n\n")[:2]
    dying = VLLM.body("engine_killed_midstream").split(b"\n\n")[-3:]
    assert b'"error"' in dying[0]
    assert dying[1] == b"data: [DONE]"
    with pytest.raises(UpstreamFailed, match="EngineCore encountered an issue"):
        await drafts_of(up, b"\n\n".join(events + dying))
    assert [code for *_, code in up.observed] == ["upstream_failed"]


@pytest.mark.parametrize("end", [b"", b"data: [DONE]\n\n", b'data: {"choi'])
async def test_a_stream_that_ends_without_a_finish_is_unreachable(up: Replay, end: bytes) -> None:
    events = VLLM.body("interval8_length").split(b"\n\n")[:3]
    with pytest.raises(UpstreamUnreachable, match="broke off"):
        await drafts_of(up, b"\n\n".join(events) + b"\n\n" + end)


async def test_a_stream_whose_connection_drops_is_unreachable(up: Replay) -> None:
    up.on("POST", COMPLETIONS, stream_reply(VLLM.body("interval1_eos")[:600], drop_after=1))
    with pytest.raises(UpstreamUnreachable):
        async for _ in backend(up).write(Context(Segment("", (1,))), GREEDY, 4, CALL):
            pass


async def test_the_observer_is_told_of_a_stream_that_broke_off(up: Replay) -> None:
    with pytest.raises(UpstreamUnreachable):
        await drafts_of(up, b"data: [DONE]\n\n")
    assert [code for *_, code in up.observed] == ["upstream_unreachable"]


async def test_chunks_without_the_token_ids_asked_for_are_malformed(up: Replay) -> None:
    with pytest.raises(UpstreamMalformed, match="is not what was asked for"):
        await drafts_of(up, VLLM.body("nothing_asked_for"))


async def test_a_chunk_with_other_numbers_of_ids_and_of_tokens_is_malformed(up: Replay) -> None:
    def lose_an_id(events: list[Any]) -> None:
        events[1]["choices"][0]["token_ids"].pop()

    with pytest.raises(UpstreamMalformed, match="7 token_ids, but 8 tokens"):
        await drafts_of(up, VLLM.edited("interval8_length", lose_an_id))


@pytest.mark.parametrize(
    ("reason", "error"),
    [("abort", UpstreamFailed), ("error", UpstreamFailed), ("tool_calls", UpstreamMalformed)],
)
async def test_no_other_finish_reason_is_an_end(
    up: Replay, reason: str, error: type[MotabError]
) -> None:
    def ended(events: list[Any]) -> None:
        events[-2]["choices"][0]["finish_reason"] = reason

    with pytest.raises(error, match=reason):
        await drafts_of(up, VLLM.edited("interval1_length", ended))


async def test_an_event_that_is_no_json_is_malformed(up: Replay) -> None:
    with pytest.raises(UpstreamMalformed, match="a stream event is not what was asked for"):
        await drafts_of(up, b"data: {oops}\n\n")


@pytest.mark.parametrize(
    "event",
    [
        b"{}",
        b"7",
        b'{"choices": [{}]}',
        b'{"choices": [{"text": "a", "token_ids": [64], "logprobs": {"tokens": ["a"]}}]}',
    ],
    ids=["nothing", "a number", "empty choice", "no finish_reason"],
)
async def test_an_event_of_another_shape_is_malformed(up: Replay, event: bytes) -> None:
    with pytest.raises(UpstreamMalformed):
        await drafts_of(up, b"data: " + event + b"\n\n")


async def test_a_usage_event_without_a_finish_before_it_is_no_end(up: Replay) -> None:
    def unfinished(events: list[Any]) -> None:
        events[-2]["choices"][0]["finish_reason"] = None

    with pytest.raises(UpstreamError):
        await drafts_of(up, VLLM.edited("interval1_length", unfinished))


# Scoring.


async def scores_of(
    up: Replay, payload: Any, *lengths: int, top_k: int = 20, entropy_known: bool = False
) -> Scores:
    up.on("POST", COMPLETIONS, json_reply(payload))
    return await backend(up).score(
        scored_context(*lengths), len(lengths), top_k, CALL, entropy_known=entropy_known
    )


def prompt_rows() -> list[Any]:
    rows: list[Any] = VLLM.json("score_two_steps")["choices"][0]["prompt_logprobs"]
    return rows


def value_from(rows: list[Any], start: int, end: int) -> float:
    product = 1.0
    for index in range(start, end):
        product *= math.exp(rows[index][str(SCORED_IDS[index])]["logprob"])
    return float(product ** (1 / (end - start)))


def row_entropy(row: Any, top_k: int) -> float:
    return entropy_from(*[entry["logprob"] for entry in row.values() if entry["rank"] <= top_k])


async def test_values_and_entropies_are_those_of_the_recorded_log_probabilities(
    up: Replay,
) -> None:
    scores = await scores_of(up, VLLM.body("score_two_steps"), NUM_STEP_1, NUM_STEP_2)
    rows, (first, second) = prompt_rows(), scores.steps
    assert first.value == pytest.approx(value_from(rows, 37, 47), rel=1e-9)
    assert second.value == pytest.approx(value_from(rows, 47, 55), rel=1e-9)
    assert first.entropy == pytest.approx(row_entropy(rows[37], 20), rel=1e-9)
    assert second.entropy == pytest.approx(row_entropy(rows[47], 20), rel=1e-9)
    assert (first.num_tokens, second.num_tokens) == (10, 8)
    # As they came out when the payload was recorded.
    assert (first.value, second.value) == pytest.approx((0.41862113, 0.00387864), rel=1e-5)
    assert first.entropy == pytest.approx(2.1678976, rel=1e-6)


async def test_one_call_gives_the_entropy_of_the_next_state_too(up: Replay) -> None:
    scores = await scores_of(up, VLLM.body("score_two_steps"), NUM_STEP_1, NUM_STEP_2)
    (top,) = VLLM.json("score_two_steps")["choices"][0]["logprobs"]["top_logprobs"]
    assert scores.next_entropy == pytest.approx(entropy_from(*top.values()), rel=1e-9)


async def test_only_the_new_steps_are_scored_and_counted(up: Replay) -> None:
    up.on("POST", COMPLETIONS, json_reply(VLLM.body("score_two_steps")))
    context = scored_context(NUM_STEP_1, NUM_STEP_2)
    both = await backend(up).score(context, 2, 20, CALL, entropy_known=False)
    last = await backend(up).score(context, 1, 20, CALL, entropy_known=False)
    assert last.steps == both.steps[1:]
    assert (both.num_tokens, last.num_tokens) == (18, 8)


LONG = [7, *range(1000, 1600)]


def long_answer(seen: Seen) -> Reply:
    """vLLM's of a made-up model: the state after n tokens has the candidates of `state(n)`."""
    ids = seen.body["prompt"]
    prompts = ids if isinstance(ids[0], list) else [ids]
    choices: list[dict[str, Any]] = []
    for prompt in prompts:
        top = {f"token_id:{rank}": x for rank, x in enumerate(state(len(prompt)))}
        choices.append({"index": len(choices), "logprobs": {"top_logprobs": [top]}})
    if "prompt_logprobs" in seen.body:
        rows: list[Any] = [None]
        for index, token in enumerate(ids[1:], start=1):
            rows.append({str(token): {"logprob": -0.5, "rank": 30}})
            for rank, x in enumerate(state(index)[: seen.body["prompt_logprobs"]]):
                rows[-1][str(rank)] = {"logprob": x, "rank": rank + 1}
        choices[0]["prompt_logprobs"] = rows
    return json_reply({"choices": choices, "usage": {}})


def state(num_tokens: int) -> list[float]:
    return [-1.0 - 0.001 * (num_tokens % 100) * rank for rank in range(20)]


async def test_the_entropies_inside_a_long_text_are_asked_for_on_their_own(up: Replay) -> None:
    up.on("POST", COMPLETIONS, long_answer)
    context = steps_at_the_end(LONG, 50, 30, 20)
    scores = await backend(up).score(context, 3, 20, CALL, entropy_known=True)
    whole, inner = up.bodies(COMPLETIONS)
    # No candidates for the 600 positions; the other call finds the context in the cache.
    assert (whole["prompt"], whole["prompt_logprobs"], whole["logprobs"]) == (LONG, 0, 20)
    assert inner["prompt"] == [LONG[:551], LONG[:581]]
    assert "prompt_logprobs" not in inner
    assert (inner["logprobs"], inner["max_tokens"], inner["temperature"]) == (20, 1, 0.0)
    after = {n: pytest.approx(entropy_from(*state(n)), rel=1e-9) for n in (551, 581, 601)}
    assert [step.entropy for step in scores.steps] == [None, after[551], after[581]]
    assert scores.next_entropy == after[601]
    assert [step.num_tokens for step in scores.steps] == [50, 30, 20]
    assert scores.num_tokens == 100


async def test_the_first_of_the_entropies_is_asked_for_where_nobody_knows_it(up: Replay) -> None:
    up.on("POST", COMPLETIONS, long_answer)
    context = steps_at_the_end(LONG, 50, 30)
    scores = await backend(up).score(context, 2, 20, CALL, entropy_known=False)
    _, inner = up.bodies(COMPLETIONS)
    assert list(map(len, inner["prompt"])) == [521, 571]
    assert [step.entropy is None for step in scores.steps] == [False, False]


async def test_no_call_has_more_than_100_000_ids_of_prompts(up: Replay) -> None:
    up.on("POST", COMPLETIONS, long_answer)
    ids = [7, *range(1000, 31_000)]
    context = steps_at_the_end(ids, *[100] * 8)
    scores = await backend(up).score(context, 8, 20, CALL, entropy_known=True)
    _, *inner = up.bodies(COMPLETIONS)
    lengths = sorted(list(map(len, body["prompt"])) for body in inner)
    assert lengths == [[29301, 29401, 29501], [29601, 29701, 29801], [29901]]
    assert scores.steps[0].entropy is None
    for step, n in zip(scores.steps[1:], range(29301, 30000, 100), strict=True):
        assert step.entropy == pytest.approx(entropy_from(*state(n)), rel=1e-9)


async def test_the_recorded_entropies_of_two_prompts_are_those_of_the_rows(up: Replay) -> None:
    """Whatever order they come in; asked for behind a scoring answer that is made long."""
    recorded = VLLM.json("two_next_entropies")
    recorded["choices"].reverse()

    def answer(seen: Seen) -> Reply:
        if "prompt_logprobs" in seen.body:
            return long_answer(seen)
        prompts = [SCORED_IDS[:37], SCORED_IDS[:47]]
        assert seen.body | {"prompt": prompts} == VLLM.request("two_next_entropies")
        return json_reply(recorded)

    up.on("POST", COMPLETIONS, answer)
    context = steps_at_the_end(LONG, 50, 30)
    scores = await backend(up).score(context, 2, 20, CALL, entropy_known=False)
    rows = prompt_rows()
    expected = [pytest.approx(row_entropy(rows[n], 20), rel=1e-5) for n in (37, 47)]
    assert [step.entropy for step in scores.steps] == expected


async def test_where_many_short_steps_wait_the_candidates_come_with_the_call(up: Replay) -> None:
    up.on("POST", COMPLETIONS, long_answer)
    context = steps_at_the_end(LONG, *[10] * 8)
    scores = await backend(up).score(context, 8, 20, CALL, entropy_known=True)
    (whole,) = up.bodies(COMPLETIONS)
    assert whole["prompt_logprobs"] == 20
    expected = [pytest.approx(entropy_from(*state(521 + 10 * n)), rel=1e-9) for n in range(8)]
    assert [step.entropy for step in scores.steps] == expected


async def test_the_own_token_counts_wherever_it_stands_in_its_row(up: Replay) -> None:
    payload = VLLM.json("score_two_steps")
    choice = payload["choices"][0]
    choice["prompt_logprobs"] = [
        row and dict(reversed(row.items())) for row in choice["prompt_logprobs"]
    ]
    turned = await scores_of(up, orjson.dumps(payload), NUM_STEP_1, NUM_STEP_2)
    async with replay() as other:
        payload = VLLM.body("score_two_steps")
        assert turned == await scores_of(other, payload, NUM_STEP_1, NUM_STEP_2)


FEW: dict[str, Any] = {"index": 0, "logprobs": {"top_logprobs": [{"token_id:1": -0.1}]}}


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ([FEW], "20 top log-probabilities"),
        ([], "1 prompts, but 0 choices"),
        ([FEW, FEW | {"index": 1}], "1 prompts, but 2 choices"),
    ],
)
async def test_a_lost_entropy_inside_a_long_text_is_an_error(
    up: Replay, choices: list[Any], message: str
) -> None:
    def answer(seen: Seen) -> Reply:
        if "prompt_logprobs" in seen.body:
            return long_answer(seen)
        return json_reply({"choices": choices})

    up.on("POST", COMPLETIONS, answer)
    context = steps_at_the_end(LONG, 50, 30)
    with pytest.raises(ExceptionGroup) as caught:
        await backend(up).score(context, 2, 20, CALL, entropy_known=True)
    assert caught.group_contains(UpstreamMalformed, match=message)


async def test_a_known_entropy_needs_no_top_k_and_the_value_is_the_same(up: Replay) -> None:
    full = await scores_of(up, VLLM.body("score_two_steps"), NUM_STEP_2)
    async with replay() as other:
        payload = VLLM.body("score_value_only")
        lean = await scores_of(other, payload, NUM_STEP_2, entropy_known=True)
    assert lean.steps[0].entropy is None
    assert lean.steps[0].value == pytest.approx(full.steps[0].value, rel=1e-6)
    assert lean.steps[0].num_tokens == NUM_STEP_2
    assert lean.next_entropy == pytest.approx(full.next_entropy, rel=1e-6)


async def test_the_prompt_s_own_token_below_the_top_k_is_dropped_from_the_entropy(
    up: Replay,
) -> None:
    # Every token a step of its own, so that each position's entropy is asked for.
    scores = await scores_of(up, VLLM.body("score_two_steps"), *[1] * 18)
    rows = prompt_rows()[-18:]
    assert [len(row) for row in rows].count(21) == 2
    for row, score in zip(rows, scores.steps, strict=True):
        assert score.entropy == pytest.approx(row_entropy(row, 20), rel=1e-9)
        with_extra = entropy_from(*[entry["logprob"] for entry in row.values()])
        assert (score.entropy == pytest.approx(with_extra, rel=1e-9)) == (len(row) == 20)


async def test_the_order_of_the_entries_does_not_matter(up: Replay) -> None:
    payload = VLLM.json("score_two_steps")
    choice = payload["choices"][0]
    choice["prompt_logprobs"] = [
        row and dict(reversed(row.items())) for row in choice["prompt_logprobs"]
    ]
    straight = await scores_of(up, VLLM.body("score_two_steps"), 10, 8)
    async with replay() as other:
        assert await scores_of(other, payload, 10, 8) == straight


async def test_a_generated_token_outside_the_top_k_is_dropped_from_the_next_entropy(
    up: Replay,
) -> None:
    payload = VLLM.json("score_two_steps")
    sampled = VLLM.json("sampled_outside_top3")["choices"][0]["logprobs"]
    payload["choices"][0]["logprobs"] = sampled
    scores = await scores_of(up, payload, 10, 8, top_k=3)
    logprobs = list(sampled["top_logprobs"][0].values())
    assert len(logprobs) == 4
    assert scores.next_entropy == pytest.approx(entropy_from(*logprobs[1:]), rel=1e-9)
    assert scores.steps[0].entropy == pytest.approx(row_entropy(prompt_rows()[37], 3), rel=1e-9)


async def test_an_impossible_token_makes_the_value_zero(up: Replay) -> None:
    def impossible(choice: Any) -> None:
        # vLLM writes -inf as -9999.
        choice["prompt_logprobs"][50][str(SCORED_IDS[50])]["logprob"] = -9999.0

    scores = await scores_of(up, with_choice(impossible), 10, 8)
    assert scores.steps[0].value > 0.4
    assert scores.steps[1].value == 0.0


async def test_an_impossible_token_makes_a_long_step_s_value_zero_too(up: Replay) -> None:
    # Taken as a number, -9999 would be one bad token among many.
    logprobs = [0.0] * 9_999 + [-9999.0]
    payload = VLLM.json("score_value_only")
    payload["choices"][0]["prompt_logprobs"] = [
        None,
        *({"5": {"logprob": logprob, "rank": 1}} for logprob in logprobs),
    ]
    up.on("POST", COMPLETIONS, json_reply(payload))
    context = Context(Segment("", (1,)), [Segment("long", (5,) * len(logprobs))])
    scores = await backend(up).score(context, 1, 20, CALL, entropy_known=True)
    assert scores.steps[0].value == 0.0


@pytest.mark.parametrize(
    ("lengths", "entropy_known", "top_k"),
    [((10, 8), False, 20), ((10, 8), True, 20), ((8,), False, 20), ((8,), True, 0)],
    ids=["two", "two, first known", "one", "one known"],
)
async def test_a_scoring_call_asks_for_a_top_k_of_the_prompt_only_where_it_must(
    up: Replay, lengths: tuple[int, ...], entropy_known: bool, top_k: int
) -> None:
    payload = VLLM.body("score_two_steps" if top_k else "score_value_only")
    await scores_of(up, payload, *lengths, entropy_known=entropy_known)
    (sent,) = up.bodies(COMPLETIONS)
    assert sent == {
        **NEUTRAL,
        "prompt": SCORED_IDS,
        "prompt_logprobs": top_k,
        "logprobs": 20,
        "max_tokens": 1,
        "return_tokens_as_token_ids": True,
    }
    assert sent == VLLM.request("score_two_steps" if top_k else "score_value_only")


async def test_cached_tokens_of_a_scoring_call_are_passed_on(up: Replay) -> None:
    payload = VLLM.json("score_two_steps")
    assert (await scores_of(up, payload, 10, 8)).num_cached_tokens == 0
    payload["usage"]["prompt_tokens_details"]["cached_tokens"] = 16
    async with replay() as other:
        assert (await scores_of(other, payload, 10, 8)).num_cached_tokens == 16
    payload["usage"]["prompt_tokens_details"] = None
    async with replay() as other:
        assert (await scores_of(other, payload, 10, 8)).num_cached_tokens is None


# What may be wrong with a score.


def with_choice(edit: Callable[[Any], object]) -> Any:
    payload = VLLM.json("score_two_steps")
    edit(payload["choices"][0])
    return payload


def token_entry(choice: Any) -> Any:
    """The scored token's own entry at a position inside step 2."""
    return choice["prompt_logprobs"][50][str(SCORED_IDS[50])]


def next_tops(choice: Any) -> Any:
    return choice["logprobs"]["top_logprobs"][0]


def drop_a_candidate(choice: Any) -> None:
    row = choice["prompt_logprobs"][47]
    del row[next(key for key, entry in row.items() if entry["rank"] == 20)]


def null_a_candidate(choice: Any) -> None:
    row = choice["prompt_logprobs"][47]
    next(entry for entry in row.values() if entry["rank"] == 20)["logprob"] = None


BROKEN: dict[str, Callable[[Any], object]] = {
    "no prompt_logprobs": lambda c: c.update(prompt_logprobs=None),
    "prompt_logprobs not even named": lambda c: c.pop("prompt_logprobs"),
    "too few rows": lambda c: c["prompt_logprobs"].pop(),
    "too many rows": lambda c: c["prompt_logprobs"].append(c["prompt_logprobs"][-1]),
    "a null row": lambda c: c["prompt_logprobs"].__setitem__(50, None),
    "a row without its token": lambda c: c["prompt_logprobs"][50].pop(str(SCORED_IDS[50])),
    "a null log-probability": lambda c: token_entry(c).update(logprob=None),
    "a positive log-probability": lambda c: token_entry(c).update(logprob=0.5),
    "no log-probability": lambda c: token_entry(c).pop("logprob"),
    "a log-probability that is text": lambda c: token_entry(c).update(logprob="-1.0"),
    "a candidate too few": drop_a_candidate,
    "a null candidate": null_a_candidate,
    "no rank": lambda c: c["prompt_logprobs"][47][str(SCORED_IDS[47])].pop("rank"),
    "no generated log-probabilities": lambda c: c.update(logprobs=None),
    "no generated token": lambda c: c["logprobs"]["top_logprobs"].clear(),
    "a generated candidate too few": lambda c: next_tops(c).popitem(),
    "a null generated candidate": lambda c: next_tops(c).update(dict.fromkeys(next_tops(c), None)),
}


@pytest.mark.parametrize("broken", BROKEN)
async def test_a_score_from_an_incomplete_answer_is_malformed(up: Replay, broken: str) -> None:
    payload = with_choice(BROKEN[broken])
    with pytest.raises(UpstreamMalformed):
        await scores_of(up, payload, 10, 8)
    assert not UpstreamMalformed.retryable


async def test_the_prompt_s_own_token_does_not_stand_in_for_a_missing_candidate(
    up: Replay,
) -> None:
    def drop_one_of_21(choice: Any) -> None:
        row = choice["prompt_logprobs"][48]
        del row[next(key for key, entry in row.items() if entry["rank"] == 20)]
        assert len(row) == 20

    with pytest.raises(UpstreamMalformed):
        await scores_of(up, with_choice(drop_one_of_21), 11, 7)  # step 2 begins at row 48


@pytest.mark.parametrize("payload", [{}, {"choices": []}, {"choices": None}, [], None, "text"])
async def test_an_answer_without_a_choice_is_malformed(up: Replay, payload: Any) -> None:
    with pytest.raises(UpstreamMalformed):
        await scores_of(up, payload, 10, 8)


@pytest.mark.parametrize("literal", [b"NaN", b"Infinity", b"-Infinity"])
async def test_a_log_probability_that_no_json_can_hold_gives_no_score(
    up: Replay, literal: bytes
) -> None:
    logprob = orjson.dumps(token_entry(VLLM.json("score_two_steps")["choices"][0])["logprob"])
    body = VLLM.body("score_two_steps")
    assert body.count(b'"logprob":' + logprob) == 1
    with pytest.raises((UpstreamMalformed, UpstreamFailed)):
        await scores_of(up, body.replace(logprob, literal), 10, 8)


async def test_a_step_without_tokens_has_no_score(up: Replay) -> None:
    with pytest.raises(UpstreamMalformed):
        await scores_of(up, VLLM.body("score_two_steps"), 10, 0)


# Errors by status.


@pytest.mark.parametrize(
    ("name", "status", "error"),
    [
        ("error_too_long", 400, ContextExceeded),
        ("error_top_k", 400, UpstreamRefused),
        ("error_unknown_model", 404, UpstreamRefused),
        ("error_wrong_path", 404, UpstreamRefused),
        ("error_engine_dead", 500, UpstreamFailed),
    ],
)
async def test_an_error_is_the_same_for_writing_and_scoring(
    up: Replay, name: str, status: int, error: type[MotabError]
) -> None:
    up.on("POST", COMPLETIONS, json_reply(VLLM.body(name), status))
    with pytest.raises(error):
        await backend(up).score(scored_context(8), 1, 20, CALL, entropy_known=False)
    with pytest.raises(error):
        await anext(backend(up).write(scored_context(8), GREEDY, 4, CALL))


# Token log-probabilities.


async def logprobs_of(up: Replay, payload: Any) -> tuple[ScoredToken, ...]:
    up.on("POST", COMPLETIONS, json_reply(payload))
    context = scored_context(NUM_STEP_1, NUM_STEP_2)
    context.steps[-1] = Segment(STEPS[1], context.steps[-1].token_ids)
    return await backend(up).token_logprobs(context, CALL)


async def test_every_token_of_the_last_step_has_its_end_and_its_log_probability(up: Replay) -> None:
    tokens = await logprobs_of(up, VLLM.body("score_value_only"))
    rows = VLLM.json("score_value_only")["choices"][0]["prompt_logprobs"][-NUM_STEP_2:]
    ids = SCORED_IDS[-NUM_STEP_2:]
    assert [token.logprob for token in tokens] == [
        row[str(token_id)]["logprob"] for row, token_id in zip(rows, ids, strict=True)
    ]
    # "So", a blank and the begin of the rocket, more of it, the rest, " é", " ", "1", "2".
    assert [token.end for token in tokens] == [2, 4, 4, 7, 10, 11, 12, 13]
    (body,) = up.bodies(COMPLETIONS)
    assert body == {**NEUTRAL, "prompt": SCORED_IDS, "prompt_logprobs": 0, "max_tokens": 1}


async def test_an_answer_without_prompt_logprobs_has_no_token_logprobs(up: Replay) -> None:
    answer = VLLM.json("score_value_only")
    answer["choices"][0]["prompt_logprobs"] = None
    with pytest.raises(UpstreamMalformed):
        await logprobs_of(up, answer)


async def test_tokens_that_spell_another_text_are_malformed(up: Replay) -> None:
    answer = VLLM.json("score_value_only")
    answer["choices"][0]["prompt_logprobs"][-1] = {"34": {"logprob": -1.0, "decoded_token": "3"}}
    with pytest.raises(UpstreamMalformed, match="do not spell the text"):
        await logprobs_of(up, answer)
