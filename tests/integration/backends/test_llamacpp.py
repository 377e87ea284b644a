import asyncio
import math
from collections.abc import Callable, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any

import orjson
import pytest

from proxy.backends.base import (
    Call,
    Context,
    Draft,
    Message,
    Question,
    Sampling,
    Scores,
    Segment,
    WorkerSlots,
)
from proxy.backends.servers.llamacpp import LlamaCpp
from proxy.backends.servers.slot_pool import SlotPool
from proxy.backends.tokens.chat_template import ChatTemplate
from proxy.config import load_config
from proxy.errors import (
    ConfigError,
    ContextExceeded,
    MotabError,
    UpstreamFailed,
    UpstreamMalformed,
    UpstreamRefused,
    UpstreamUnreachable,
)
from proxy.wiring.models import open_service
from tests.support.paths import GOLDEN
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

LLAMACPP = Recording("llamacpp-b11549")
FOLLOWER = 81
COMPLETION = "/completion"
LOWEST = -3.4028234663852886e38
UNCHANGED: Mapping[int, Callable[[Any], object]] = {}

STEPS = ("7+5 = 12.\n\n", "So é 12")


def backend(up: Replay, template: str | None = None, num_slots: int = 2) -> LlamaCpp:
    chat_template = None if template is None else ChatTemplate(template)
    return LlamaCpp(up.client, chat_template, num_slots, FOLLOWER)


# Connecting.


async def test_connecting_learns_the_slots_and_the_follower(up: Replay) -> None:
    up.on("GET", "/props", json_reply(LLAMACPP.body("props")))
    up.on("POST", "/tokenize", LLAMACPP.answering("tokenize_follower"))
    connected = await LlamaCpp.connect(up.client, None)
    up.on("POST", "/tokenize", LLAMACPP.answering("encode_step1"))
    (step,) = await connected.encode([STEPS[0]], CALL)
    assert step.token_ids[-2:] == (198, 198)
    assert await slots_used_at_once(up, connected, num_writes=3) == [0, 1]


async def slots_used_at_once(up: Replay, llama: LlamaCpp, num_writes: int) -> list[int]:
    all_but_one = asyncio.Event()

    def answer(_: Seen) -> Reply:
        if len(up.bodies(COMPLETION)) == num_writes - 1:
            all_but_one.set()
        return stream_reply(hold=True)

    up.on("POST", COMPLETION, answer)
    writes = [
        asyncio.create_task(anext(llama.write(prompted(), GREEDY, 4, Call(f"{index}"))))
        for index in range(num_writes)
    ]
    async with asyncio.timeout(2):
        await all_but_one.wait()
    await turns()
    for write in writes:
        write.cancel()
    await asyncio.gather(*writes, return_exceptions=True)
    return sorted(body["id_slot"] for body in up.bodies(COMPLETION))


@pytest.mark.parametrize("props", [{}, {"total_slots": None}, {"total_slots": "many"}, []])
async def test_a_server_without_slots_is_not_llama_cpp_s_own(up: Replay, props: Any) -> None:
    up.on("GET", "/props", json_reply(props))
    up.on("POST", "/tokenize", LLAMACPP.answering("tokenize_follower"))
    with pytest.raises(UpstreamMalformed, match=r"llama\.cpp's own server"):
        await LlamaCpp.connect(up.client, None)


@pytest.mark.parametrize("answer", [{}, {"tokens": []}])
async def test_a_server_that_tokenises_nothing_is_malformed(up: Replay, answer: Any) -> None:
    up.on("GET", "/props", json_reply(LLAMACPP.body("props")))
    up.on("POST", "/tokenize", json_reply(answer))
    with pytest.raises(UpstreamMalformed):
        await LlamaCpp.connect(up.client, None)


async def test_a_healthy_server_passes_the_check_and_a_loading_one_does_not(up: Replay) -> None:
    up.on("GET", "/health", json_reply(LLAMACPP.body("health")))
    await backend(up).check()
    loading = {"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}}
    up.on("GET", "/health", json_reply(loading, 503))
    with pytest.raises(UpstreamFailed, match="Loading model"):
        await backend(up).check()


# Rendering and encoding.


async def test_messages_are_rendered_by_the_server_s_own_template(up: Replay) -> None:
    up.on("POST", "/apply-template", LLAMACPP.answering("apply_template"))
    up.on("POST", "/tokenize", LLAMACPP.answering("render_chat"))
    rendered = await backend(up).render(QUESTION, CALL)
    assert rendered.text.endswith("What is 7+5?<|im_end|>\n<|im_start|>assistant\n")
    assert rendered.token_ids == tuple(scored_prompts()[0])


async def test_markup_is_read_as_special_tokens(up: Replay) -> None:
    up.on("POST", "/tokenize", json_reply({"tokens": [5, 6]}))
    assert await backend(up).markup("<|end|>", CALL) == Segment("<|end|>", (5, 6))
    (body,) = up.bodies("/tokenize")
    assert body == {"content": "<|end|>", "add_special": False, "parse_special": True}


async def test_a_harmony_model_is_refused_for_its_special_tokens_are_not_written(
    up: Replay, tmp_path: Path
) -> None:
    up.on("GET", "/props", json_reply(LLAMACPP.body("props")))
    up.on("GET", "/health", json_reply(LLAMACPP.body("health")))
    up.on("POST", "/tokenize", json_reply({"tokens": [81]}))
    up.on("POST", "/apply-template", json_reply({"prompt": "Is it raining?<|start|>assistant"}))
    path = tmp_path / "motab.yaml"
    path.write_text(
        f"upstreams: {{a: {{kind: llamacpp, base_url: '{up.client.base_url}', model: m}}}}\n"
        "models: {pair: {student: a, teacher: a}}\n",
        encoding="utf-8",
    )
    with pytest.raises(ConfigError, match=r"^upstreams\.a\.reasoning: such a server"):
        async with open_service(load_config(path)):
            pass


async def test_a_configured_template_is_rendered_here(up: Replay) -> None:
    up.on("POST", "/tokenize", LLAMACPP.answering("render_template"))
    source = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "<|im_start|>assistant\n{{ '' }}"
    )
    rendered = await backend(up, source).render(Question((Message("user", "Hi"),)), CALL)
    assert rendered == Segment(
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
        (1, 4093, 198, 26843, 2, 198, 1, 520, 9531, 198),
    )


async def test_a_raw_prompt_stands_as_it_is(up: Replay) -> None:
    up.on("POST", "/tokenize", LLAMACPP.answering("render_prompt"))
    text = "Paris is nice.\n\nBerlin is"
    rendered = await backend(up).render(Question(prompt=text), CALL)
    assert rendered == Segment(text, (38634, 314, 9239, 30, 198, 198, 24726, 4226, 314))


async def test_steps_are_encoded_as_in_running_text_and_in_their_order(up: Replay) -> None:
    up.on("POST", "/tokenize", LLAMACPP.answering("encode_step1", "encode_step2", "encode_step4"))
    segments = await backend(up).encode([*STEPS, "42"], CALL)
    assert segments == [
        Segment(STEPS[0], (39, 27, 37, 446, 216, 33, 34, 30, 198, 198)),
        Segment(STEPS[1], (2931, 26411, 216, 33, 34)),
        Segment("42", (36, 34)),
    ]


async def test_a_character_that_is_split_over_tokens_is_spelled_exactly(up: Replay) -> None:
    up.on("POST", "/tokenize", LLAMACPP.answering("encode_step3"))
    pieces = [row["piece"] for row in LLAMACPP.json("encode_step3")["tokens"]]
    assert pieces == [[32, 240, 159], [154], [128], "\n", "a"]
    segments = await backend(up).encode([" 🚀\n"], CALL)
    assert segments == [Segment(" 🚀\n", (15107, 244, 218, 198))]


async def test_text_that_looks_like_a_special_token_stays_text(up: Replay) -> None:
    up.on("POST", "/tokenize", LLAMACPP.answering("encode_special_text"))
    (segment,) = await backend(up).encode(["<|im_end|>\nHi"], CALL)
    assert segment.token_ids == (44, 108, 306, 79, 486, 108, 46, 198, 26843)


async def test_no_text_is_no_token(up: Replay) -> None:
    up.on("POST", "/tokenize", LLAMACPP.answering("encode_empty"))
    assert await backend(up).encode([""], CALL) == [Segment("", ())]


@pytest.mark.parametrize(
    ("row", "piece"),
    [(0, [32, 240]), (1, [155]), (2, []), (0, " 🚀"), (3, "\r\n"), (3, "")],
)
async def test_tokens_that_do_not_spell_the_text_to_the_byte_are_malformed(
    up: Replay, row: int, piece: Any
) -> None:
    answer = LLAMACPP.json("encode_step3")
    answer["tokens"][row]["piece"] = piece
    up.on("POST", "/tokenize", json_reply(answer))
    with pytest.RaisesGroup(UpstreamMalformed):
        await backend(up).encode([" 🚀\n"], CALL)


async def test_text_that_ends_in_a_space_can_be_encoded(up: Replay) -> None:
    text = "It is 7. "
    merged = LLAMACPP.json("encode_trailing_space")["tokens"]
    assert merged[-1] == {"id": 253, "piece": " a"}

    def answer(seen: Seen) -> Reply:
        rest = seen.body["content"].removeprefix("It is 7.")
        ends = {" a": merged[-1:], "": [], " ": [{"id": 216, "piece": " "}]}
        return json_reply({"tokens": merged[:-1] + ends[rest]})

    up.on("POST", "/tokenize", answer)
    assert await backend(up).encode([text], CALL) == [Segment(text, (1589, 314, 216, 39, 30, 216))]


@pytest.mark.parametrize("answer", [{}, {"tokens": None}, [], None])
async def test_an_answer_without_tokens_is_malformed(up: Replay, answer: Any) -> None:
    up.on("POST", "/tokenize", json_reply(answer))
    with pytest.raises(UpstreamMalformed, match="/tokenize is not what was asked for"):
        await backend(up).render(Question(prompt="Hi"), CALL)
    with pytest.RaisesGroup(UpstreamMalformed):
        await backend(up).encode(["42"], CALL)


async def test_a_template_answer_without_a_prompt_is_malformed(up: Replay) -> None:
    up.on("POST", "/apply-template", json_reply({"error": "no jinja"}))
    with pytest.raises(UpstreamMalformed, match="no 'prompt'"):
        await backend(up).render(QUESTION, CALL)


# Writing.

STREAMS = {
    "stream_emoji": ("🎉🌍🎉🌍", 12, "length"),
    "stream_emoji_cut": ("🎉🌍", 8, "length"),
    "stream_limit": (" nice.\n\nThe only", 6, "length"),
    "stream_stop_word": (" nice", 4, "stop"),  # its tokens were written, its text is cut off
    "stream_stop_mid_token": (" ", 1, "stop"),
    "stream_stop_not_reached": (" nice.\n\nThe only", 6, "length"),
}
ENDED = {"stream_eos": ("Yes.", 2), "stream_sampled": ("Yes. I'm ready to help.", 8)}


def prompted(*ids: int) -> Context:
    return Context(Segment("", ids or (1, 2, 3)))


async def drafts_of(up: Replay, *chunks: bytes) -> list[Draft]:
    up.on("POST", COMPLETION, stream_reply(*chunks))
    return [draft async for draft in backend(up).write(prompted(), GREEDY, 24, CALL)]


@pytest.mark.parametrize("name", STREAMS)
async def test_a_stream_is_its_text_in_one_piece_a_token(up: Replay, name: str) -> None:
    text, num_tokens, end = STREAMS[name]
    drafts = await drafts_of(up, LLAMACPP.body(name))
    pieces = pieces_of(drafts)
    assert "".join(pieces) == text
    assert len(pieces) == num_tokens == LLAMACPP.events(name)[-1]["tokens_predicted"]
    assert [draft.end for draft in drafts] == [None] * (len(drafts) - 1) + [end]


@pytest.mark.parametrize("name", ENDED)
async def test_a_stream_that_the_model_ends_is_its_text(up: Replay, name: str) -> None:
    drafts = await drafts_of(up, LLAMACPP.body(name))
    assert "".join(pieces_of(drafts)) == ENDED[name][0]
    assert [draft.end for draft in drafts] == [None] * (len(drafts) - 1) + ["stop"]


@pytest.mark.parametrize("name", ENDED)
async def test_the_end_token_is_no_text(up: Replay, name: str) -> None:
    pieces = pieces_of(await drafts_of(up, LLAMACPP.body(name)))
    assert len(pieces) == ENDED[name][1] == LLAMACPP.events(name)[-1]["tokens_predicted"] - 1


async def test_a_character_comes_whole_with_the_token_that_completes_it(up: Replay) -> None:
    pieces = pieces_of(await drafts_of(up, LLAMACPP.body("stream_emoji")))
    assert pieces == ["", "", "🎉", "", "", "🌍"] * 2
    pieces = pieces_of(await drafts_of(up, LLAMACPP.body("stream_emoji_cut")))
    assert pieces == ["", "", "🎉", "", "", "🌍", "", ""]


async def test_text_held_back_for_a_stop_string_comes_with_the_token_that_frees_it(
    up: Replay,
) -> None:
    pieces = pieces_of(await drafts_of(up, LLAMACPP.body("stream_stop_not_reached")))
    assert pieces == [" nice", "", "", "", ".\n\nThe", " only"]


TOLD: dict[str, list[tuple[str, float | None]]] = {
    "eos": [("Yes", -1.0310745239257813), (".", -0.3918466866016388)],
    # Those of the tokens inside a character are missing, and so are no zeros.
    "emoji": [("", None), ("", None), ("🎉", -0.7547796964645386)],
    "stop_not_reached": [
        (" nice", -0.19169242680072784),
        ("", -0.020708542317152023),
        ("", -0.061251718550920486),
        ("", -0.0028776167891919613),
        (".\n\nThe", -2.714951753616333),
    ],
}


@pytest.mark.parametrize("name", TOLD)
async def test_each_piece_brings_its_tokens_log_probability_where_asked_for(
    up: Replay, name: str
) -> None:
    request = LLAMACPP.request(f"stream_logprobs_{name}")
    up.on("POST", COMPLETION, stream_reply(LLAMACPP.body(f"stream_logprobs_{name}")))
    sampling = Sampling(0.0, stop=tuple(request["stop"]), logprobs=True)
    context = prompted(*request["prompt"])
    writing = backend(up).write(context, sampling, request["n_predict"], CALL)
    drafts = [draft async for draft in writing]
    assert up.bodies(COMPLETION) == [request]
    pieces = pieces_of(drafts)
    told = [x for draft in drafts for x in draft.logprobs or ()]
    assert len(told) == len(pieces)
    for (piece, logprob), ours, (got,) in zip(TOLD[name], pieces, told, strict=False):
        assert ours == piece
        assert got == logprob if logprob is not None else math.isnan(got)


async def test_without_being_asked_a_stream_brings_no_log_probabilities(up: Replay) -> None:
    drafts = await drafts_of(up, LLAMACPP.body("stream_eos"))
    assert all(draft.logprobs is None for draft in drafts)
    assert "n_probs" not in up.bodies(COMPLETION)[0]


async def test_the_drafts_are_the_same_when_every_byte_comes_alone(up: Replay) -> None:
    body = LLAMACPP.body("stream_emoji")
    whole = await drafts_of(up, body)
    assert await drafts_of(up, *(body[i : i + 1] for i in range(len(body)))) == whole


@pytest.mark.parametrize("name", [*STREAMS, *ENDED])
async def test_the_drafts_are_the_same_however_the_bytes_are_cut(up: Replay, name: str) -> None:
    body = LLAMACPP.body(name)
    whole = await drafts_of(up, body)
    for seed in range(5):
        assert await drafts_of(up, *cut(body, seed)) == whole


async def test_cached_prompt_tokens_come_with_the_last_draft(up: Replay) -> None:
    drafts = await drafts_of(up, LLAMACPP.body("stream_emoji_cut"))
    assert [draft.num_cached_tokens for draft in drafts] == [None, None, 53]


async def test_a_write_names_its_samplers_so_that_the_server_s_defaults_are_off(
    up: Replay,
) -> None:
    up.on("POST", COMPLETION, stream_reply(LLAMACPP.body("stream_sampled")))
    sampling = Sampling(0.7, 0.95, 7, (".\n\n", "END"))
    async for _ in backend(up).write(prompted(), sampling, 24, CALL):
        pass
    assert up.bodies(COMPLETION) == [
        {
            "prompt": [1, 2, 3],
            "n_predict": 24,
            "stream": True,
            "cache_prompt": True,
            "temperature": 0.7,
            "top_p": 0.95,
            "samplers": ["temperature", "top_p"],
            "stop": [".\n\n", "END"],
            "seed": 7,
            "id_slot": 0,
        }
    ]


@pytest.mark.parametrize(("seed", "sent"), [(None, None), (7, 7), (2**63 - 1, 2**31 - 1)])
async def test_a_seed_is_sent_as_the_server_can_hold_it(
    up: Replay, seed: int | None, sent: int | None
) -> None:
    up.on("POST", COMPLETION, stream_reply(LLAMACPP.body("stream_sampled")))
    async for _ in backend(up).write(prompted(), Sampling(0.7, seed=seed), 24, CALL):
        pass
    assert up.bodies(COMPLETION)[0].get("seed") == sent


@pytest.mark.parametrize("name", [*STREAMS, *ENDED])
async def test_the_recorded_streams_answer_what_is_still_asked(up: Replay, name: str) -> None:
    request = LLAMACPP.request(name)
    up.on("POST", COMPLETION, stream_reply(LLAMACPP.body(name)))
    stop, seed = tuple(request["stop"]), request.get("seed")
    sampling = Sampling(request["temperature"], request["top_p"], seed, stop)
    context = prompted(*request["prompt"])
    async for _ in backend(up).write(context, sampling, request["n_predict"], CALL):
        pass
    assert up.bodies(COMPLETION) == [request]


async def test_closing_a_write_cancels_it_at_the_server_and_frees_its_slot(up: Replay) -> None:
    first = LLAMACPP.body("stream_limit").split(b"\n\n")[0] + b"\n\n"
    up.on("POST", COMPLETION, stream_reply(first, hold=True))
    llama = backend(up, num_slots=1)
    writing = llama.write(prompted(), GREEDY, 24, CALL)
    async with aclosing(writing):
        assert (await anext(writing)).pieces == (" nice",)
    async with asyncio.timeout(2):
        await up.left.wait()
        up.on("POST", COMPLETION, stream_reply(LLAMACPP.body("stream_limit")))
        async for _ in llama.write(prompted(), GREEDY, 24, CALL):
            pass
    assert [code for *_, code in up.observed] == ["cancelled", "ok"]


# What may go wrong in a stream.


async def test_a_context_that_ran_full_in_the_stream_is_told_so(up: Replay) -> None:
    with pytest.raises(ContextExceeded, match="Context size has been exceeded"):
        await drafts_of(up, LLAMACPP.body("stream_error"))
    assert [code for *_, code in up.observed] == ["context_length_exceeded"]


async def test_a_stream_that_ends_without_its_last_event_is_unreachable(up: Replay) -> None:
    events = LLAMACPP.body("stream_limit").split(b"\n\n")[:4]
    with pytest.raises(UpstreamUnreachable, match="broke off"):
        await drafts_of(up, b"\n\n".join(events) + b"\n\n")


async def test_the_observer_is_told_of_a_stream_that_broke_off(up: Replay) -> None:
    with pytest.raises(UpstreamUnreachable):
        await drafts_of(up, b": nothing\n\n")
    assert [code for *_, code in up.observed] == ["upstream_unreachable"]


@pytest.mark.parametrize("stop_type", ["none", "", None])
async def test_an_unknown_stop_type_is_malformed(up: Replay, stop_type: str | None) -> None:
    body = LLAMACPP.edited("stream_limit", lambda events: events[-1].update(stop_type=stop_type))
    with pytest.raises(UpstreamMalformed, match="stop_type"):
        await drafts_of(up, body)


@pytest.mark.parametrize(
    "event",
    [b"{oops}", b"{}", b'{"content": "a"}', b'{"content": null, "tokens_predicted": 1}'],
    ids=["no json", "nothing", "no count", "no content"],
)
async def test_an_event_of_another_shape_is_malformed(up: Replay, event: bytes) -> None:
    with pytest.raises(UpstreamMalformed):
        await drafts_of(up, b"data: " + event + b"\n\n")


@pytest.mark.parametrize(
    "event",
    [b"7", b"[1]", b'{"content": "", "tokens_predicted": 1, "stop": true, "stop_type": "limit"}'],
    ids=["a number", "a list", "no timings"],
)
async def test_an_odd_event_is_malformed(up: Replay, event: bytes) -> None:
    with pytest.raises(UpstreamMalformed):
        await drafts_of(up, b"data: " + event + b"\n\n")


# Scoring.


def exchanges(name: str) -> list[tuple[Any, Any]]:
    path = GOLDEN / LLAMACPP.version / f"{name}.jsonl"
    rows = [orjson.loads(line) for line in path.read_bytes().splitlines()]
    return [(row["request"], orjson.loads(row["body"])) for row in rows]


def scored_prompts() -> list[list[int]]:
    return [request["prompt"] for request, _ in exchanges("score")]


def scored_context() -> Context:
    ids = [*scored_prompts()[-1], 34]
    return Context(
        Segment("", tuple(ids[:37])),
        [Segment(STEPS[0], tuple(ids[37:47])), Segment(STEPS[1], tuple(ids[47:]))],
    )


def forced(edits: Mapping[int, Callable[[Any], object]] = UNCHANGED) -> Callable[[Seen], Reply]:
    """The recorded answer to each forced token; those with an edit are changed first."""
    rows = exchanges("score")
    for index, edit in edits.items():
        edit(rows[index][1])

    def answer(seen: Seen) -> Reply:
        for request, reply in rows:
            if request == seen.body | {"id_slot": 0}:  # the slot is no part of the answer
                return json_reply(reply)
        return json_reply({"error": f"not recorded: {seen.body}"}, 404)

    return answer


async def scores_of(
    up: Replay, edits: Mapping[int, Callable[[Any], object]] = UNCHANGED, num_new: int = 2
) -> Scores:
    up.on("POST", COMPLETION, forced(edits))
    return await backend(up).score(scored_context(), num_new, 20, CALL, entropy_known=False)


def probabilities(reply: Any) -> Any:
    return reply["completion_probabilities"][0]


async def test_values_and_entropies_are_those_of_the_recorded_log_probabilities(
    up: Replay,
) -> None:
    scores = await scores_of(up)
    rows = [probabilities(reply) for _, reply in exchanges("score")]
    first, second = scores.steps
    for score, start, end in ((first, 0, 10), (second, 10, 15)):
        product = math.prod(math.exp(row["logprob"]) for row in rows[start:end])
        assert score.value == pytest.approx(product ** (1 / (end - start)), rel=1e-9)
        top = [candidate["logprob"] for candidate in rows[start]["top_logprobs"]]
        assert score.entropy == pytest.approx(entropy_from(*top), rel=1e-9)
        assert score.num_tokens == end - start
    # As they came out when the payloads were recorded.
    assert (first.value, second.value) == pytest.approx((0.42086222, 0.00108224), rel=1e-5)
    assert (first.entropy, second.entropy) == pytest.approx((2.1338899, 2.0502363), rel=1e-6)
    assert scores.num_tokens == 15
    assert scores.next_entropy is None


async def test_scoring_forces_one_token_a_request_in_one_slot(up: Replay) -> None:
    await scores_of(up)
    context = scored_context()
    assert up.bodies(COMPLETION) == [
        {
            "prompt": context.token_ids[:position],
            "n_predict": 1,
            "n_probs": 20 if position in (37, 47) else 1,  # the first token of each step
            "temperature": 0,
            "logit_bias": [[context.token_ids[position], 1000]],
            "cache_prompt": True,
            "id_slot": 0,
        }
        for position in range(37, 52)
    ]


async def test_only_the_new_steps_are_scored(up: Replay) -> None:
    both = await scores_of(up)
    async with replay() as other:
        last = await scores_of(other, num_new=1)
        assert [len(body["prompt"]) for body in other.bodies(COMPLETION)] == [47, 48, 49, 50, 51]
    assert last.steps == both.steps[1:]
    assert last.num_tokens == 5


async def test_only_a_step_s_first_token_has_a_say_in_its_entropy(up: Replay) -> None:
    straight = await scores_of(up)

    def flat(reply: Any) -> None:
        probabilities(reply)["top_logprobs"] = [{"id": i, "logprob": -3.0} for i in range(20)]

    later = {index: flat for index in range(15) if index not in (0, 10)}
    async with replay() as other:
        assert (await scores_of(other, later)).steps == straight.steps
    async with replay() as other:
        changed = await scores_of(other, {10: flat})
    assert changed.steps[0] == straight.steps[0]
    assert changed.steps[1].entropy == pytest.approx(math.log(20))
    assert changed.steps[1].value == straight.steps[1].value


async def test_the_lowest_float_stands_for_an_impossible_token(up: Replay) -> None:
    def impossible(reply: Any) -> None:
        probabilities(reply)["logprob"] = LOWEST

    scores = await scores_of(up, {12: impossible})
    assert scores.steps[1].value == 0.0
    assert scores.steps[0].value > 0.4


async def test_a_candidate_that_is_impossible_adds_nothing_to_the_entropy(up: Replay) -> None:
    def impossible(reply: Any) -> None:
        probabilities(reply)["top_logprobs"][-1]["logprob"] = LOWEST

    scores = await scores_of(up, {0: impossible})
    row = probabilities(exchanges("score")[0][1])
    top = [candidate["logprob"] for candidate in row["top_logprobs"][:-1]]
    assert scores.steps[0].entropy == pytest.approx(entropy_from(*top), rel=1e-9)


async def test_candidates_that_are_all_impossible_have_no_entropy(up: Replay) -> None:
    def impossible(reply: Any) -> None:
        for candidate in probabilities(reply)["top_logprobs"]:
            candidate["logprob"] = LOWEST

    with pytest.raises(UpstreamMalformed):
        await scores_of(up, {0: impossible})


async def test_a_trajectory_writes_and_is_scored_in_its_own_slot(up: Replay) -> None:
    llama = backend(up, num_slots=3)
    sessions = [Call("a"), Call("b"), Call("c")]
    up.on("POST", COMPLETION, stream_reply(LLAMACPP.body("stream_limit")))
    for call in sessions:
        async for _ in llama.write(prompted(), GREEDY, 4, call):
            pass
    own = [body["id_slot"] for body in up.bodies(COMPLETION)]
    assert sorted(own) == [0, 1, 2]
    up.on("POST", COMPLETION, forced())
    for call in reversed(sessions):
        await llama.score(scored_context(), 1, 20, call, entropy_known=False)
    used = [body["id_slot"] for body in up.bodies(COMPLETION)[3:]]
    assert used == [own[2]] * 5 + [own[1]] * 5 + [own[0]] * 5


async def test_the_cached_tokens_are_those_of_the_first_request(up: Replay) -> None:
    first, later = (reply["timings"]["cache_n"] for _, reply in exchanges("score")[:2])
    assert first < later
    assert (await scores_of(up)).num_cached_tokens == first


async def test_a_known_entropy_saves_nothing_and_is_given_all_the_same(up: Replay) -> None:
    up.on("POST", COMPLETION, forced())
    scores = await backend(up).score(scored_context(), 1, 20, CALL, entropy_known=True)
    assert scores.steps[0].entropy is not None


BROKEN: dict[str, Callable[[Any], object]] = {
    "probabilities of nothing": lambda reply: reply["completion_probabilities"].clear(),
    "null probabilities": lambda reply: reply.update(completion_probabilities=None),
    "another token": lambda reply: probabilities(reply).update(id=5),
    "a null log-probability": lambda reply: probabilities(reply).update(logprob=None),
    "a positive log-probability": lambda reply: probabilities(reply).update(logprob=0.5),
    "no log-probability": lambda reply: probabilities(reply).pop("logprob"),
    "a candidate too few": lambda reply: probabilities(reply)["top_logprobs"].pop(),
    "no candidates": lambda reply: probabilities(reply).pop("top_logprobs"),
    "null candidates": lambda reply: probabilities(reply).update(top_logprobs=None),
}


@pytest.mark.parametrize("index", [0, 12], ids=["first token", "later token"])
@pytest.mark.parametrize("broken", BROKEN)
async def test_a_score_from_an_incomplete_answer_is_malformed(
    up: Replay, broken: str, index: int
) -> None:
    with pytest.raises(UpstreamMalformed):
        await scores_of(up, {index: BROKEN[broken]})


async def test_a_null_candidate_of_a_first_token_is_malformed(up: Replay) -> None:
    def null_candidate(reply: Any) -> None:
        probabilities(reply)["top_logprobs"][-1]["logprob"] = None

    with pytest.raises(UpstreamMalformed):
        await scores_of(up, {0: null_candidate})


@pytest.mark.parametrize(
    "broken",
    [lambda reply: reply.pop("timings"), lambda reply: reply.update(timings=None)],
    ids=["missing", "null"],
)
async def test_a_score_without_timings_is_malformed(
    up: Replay, broken: Callable[[Any], object]
) -> None:
    with pytest.raises(UpstreamMalformed):
        await scores_of(up, {0: broken})


async def test_a_failed_score_gives_its_slot_back(up: Replay) -> None:
    llama = backend(up, num_slots=1)
    up.on("POST", COMPLETION, forced({3: BROKEN["null probabilities"]}))
    with pytest.raises(UpstreamMalformed):
        await llama.score(scored_context(), 2, 20, CALL, entropy_known=False)
    up.on("POST", COMPLETION, forced())
    async with asyncio.timeout(2):
        scores = await llama.score(scored_context(), 2, 20, CALL, entropy_known=False)
    assert len(scores.steps) == 2


async def test_a_server_that_never_gives_probabilities_is_malformed(up: Replay) -> None:
    up.on("POST", COMPLETION, json_reply({"content": "", "timings": {"cache_n": 0}}))
    with pytest.raises(UpstreamMalformed, match="no 'completion_probabilities'"):
        await backend(up).score(scored_context(), 1, 20, CALL, entropy_known=False)


async def test_a_step_with_a_character_split_over_tokens_is_scored(up: Replay) -> None:
    ((request, silent),) = exchanges("score_half_character")
    opening = request["logit_bias"][0][0]
    assert "completion_probabilities" not in silent
    ids = tuple(row["id"] for row in LLAMACPP.json("encode_step3")["tokens"][:-1])
    assert ids[0] == opening
    # A teacher for which the four tokens are equally likely, after any context.
    vocabulary = {ids[0]: 0.5, ids[1]: 0.25, ids[2]: 0.125, ids[3]: 0.0625, FOLLOWER: 0.0625}

    def answer(seen: Seen) -> Reply:
        ((token, _),) = seen.body["logit_bias"]
        if token == opening:
            return json_reply(silent)
        top = [{"id": i, "logprob": math.log(p)} for i, p in vocabulary.items()]
        row = {"id": token, "logprob": math.log(vocabulary[token])}
        row |= {"top_logprobs": top[: seen.body["n_probs"]]}
        return json_reply(silent | {"completion_probabilities": [row]})

    up.on("POST", COMPLETION, answer)
    context = Context(Segment("", (1,)), [Segment(" 🚀\n", ids)])
    scores = await backend(up).score(context, 1, 3, CALL, entropy_known=False)
    assert scores.steps[0].value == pytest.approx((0.5 * 0.25 * 0.125 * 0.0625) ** 0.25)


@pytest.mark.parametrize(
    ("name", "status", "error"),
    [
        ("error_too_long", 400, ContextExceeded),
        ("error_bad_id", 400, UpstreamRefused),
        ("error_bad_path", 404, UpstreamRefused),
    ],
)
async def test_an_error_is_the_same_for_writing_and_scoring(
    up: Replay, name: str, status: int, error: type[MotabError]
) -> None:
    up.on("POST", COMPLETION, json_reply(LLAMACPP.body(name), status))
    llama = backend(up, num_slots=1)  # and each gives the only slot back
    with pytest.raises(error):
        await llama.score(scored_context(), 1, 20, CALL, entropy_known=False)
    with pytest.raises(error):
        await anext(llama.write(prompted(), GREEDY, 4, CALL))
    with pytest.raises(error):
        await llama.score(scored_context(), 1, 20, CALL, entropy_known=False)


# Slots.


async def leased(pool: SlotPool, session_id: str) -> int:
    async with pool.lease(session_id) as slot:
        return slot


async def test_a_trajectory_gets_its_own_slot_again() -> None:
    pool = SlotPool(3)
    own = {session: await leased(pool, session) for session in "abc"}
    assert sorted(own.values()) == [0, 1, 2]
    for session in "bcabaccab":
        assert await leased(pool, session) == own[session]


async def test_processes_that_share_a_server_use_different_slots() -> None:
    pools = [SlotPool(5, WorkerSlots(worker, 2)) for worker in range(2)]
    slots = [{await leased(pool, session) for session in "abcdef"} for pool in pools]
    assert slots == [{0, 2, 4}, {1, 3}]


async def test_a_new_trajectory_gets_the_slot_that_was_used_least_recently() -> None:
    pool = SlotPool(3)
    own = {session: await leased(pool, session) for session in "abc"}
    await leased(pool, "a")
    assert await leased(pool, "d") == own["b"]
    assert await leased(pool, "e") == own["c"]
    assert await leased(pool, "f") == own["a"]
    # b's slot is d's by now, so b takes the oldest as anyone would.
    assert await leased(pool, "b") == own["b"]


async def test_a_slot_counts_as_used_when_it_is_given_back() -> None:
    pool = SlotPool(2)
    async with pool.lease("a") as first:
        await leased(pool, "b")
    assert await leased(pool, "c") != first


async def test_no_slot_is_handed_out_twice_not_even_to_its_own_trajectory() -> None:
    pool = SlotPool(2)
    async with pool.lease("a") as one, pool.lease("a") as other:
        assert {one, other} == {0, 1}


async def test_whoever_finds_every_slot_taken_waits_in_order() -> None:
    pool, release, order = SlotPool(1), asyncio.Event(), list[str]()

    async def use(session_id: str) -> None:
        async with pool.lease(session_id):
            order.append(session_id)
            await release.wait()

    tasks = [asyncio.create_task(use(session)) for session in "abc"]
    await turns()
    assert order == ["a"]
    release.set()
    await asyncio.gather(*tasks)
    assert order == ["a", "b", "c"]


@pytest.mark.parametrize("cancelled", ["holder", "waiter"])
async def test_a_cancelled_request_leaves_no_slot_taken(cancelled: str) -> None:
    pool = SlotPool(1)

    async def hold() -> None:
        async with pool.lease("a"):
            await asyncio.Event().wait()

    holder, waiter = asyncio.create_task(hold()), asyncio.create_task(leased(pool, "b"))
    await turns()
    (holder if cancelled == "holder" else waiter).cancel()
    await turns()
    holder.cancel()
    await asyncio.gather(holder, waiter, return_exceptions=True)
    assert waiter.cancelled() == (cancelled == "waiter")
    async with asyncio.timeout(1):
        assert await leased(pool, "c") == 0


async def test_a_request_that_fails_gives_its_slot_back() -> None:
    pool = SlotPool(1)
    with pytest.raises(RuntimeError):
        async with pool.lease("a"):
            raise RuntimeError
    async with asyncio.timeout(1):
        assert await leased(pool, "b") == 0


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


# Token log-probabilities.


async def test_every_token_of_the_last_step_has_its_end_and_its_log_probability(up: Replay) -> None:
    rows = [(request["prompt"], reply) for request, reply in exchanges("score")]

    def answer(seen: Seen) -> Reply:
        return json_reply(next(reply for prompt, reply in rows if prompt == seen.body["prompt"]))

    up.on("POST", "/completion", answer)
    up.on("POST", "/tokenize", LLAMACPP.answering("encode_step2"))
    tokens = await backend(up).token_logprobs(scored_context(), CALL)
    # "So", " é" with its two bytes, " ", "1", "2".
    assert [token.end for token in tokens] == [2, 5, 6, 7, 8]
    wanted = [reply["completion_probabilities"][0]["logprob"] for _, reply in rows[10:15]]
    assert [token.logprob for token in tokens] == wanted
    assert {body["n_probs"] for body in up.bodies("/completion")} == {1}


async def test_tokens_of_another_tokenizer_have_no_ends_here(up: Replay) -> None:
    up.on("POST", "/tokenize", LLAMACPP.answering("encode_step2"))
    context = steps_at_the_end([*scored_prompts()[-1], 34, 34], 6)
    context.steps[-1] = Segment(STEPS[1], context.steps[-1].token_ids)
    with pytest.raises(UpstreamMalformed, match="not those of `tokenizer`"):
        await backend(up).token_logprobs(context, CALL)
