"""The payloads are not recorded: they were written by hand from SGLang's source (see README)."""

import asyncio
import importlib.util
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from tokenizers import Tokenizer, models

from proxy.backends.base import (
    Context,
    Draft,
    Message,
    Question,
    Reader,
    Sampling,
    ScoredToken,
    Scores,
    Segment,
)
from proxy.backends.servers.sglang import SGLang
from proxy.backends.tokens.chat_template import ChatTemplate
from proxy.backends.tokens.detect_thinking import detect_reasoning
from proxy.config import load_config
from proxy.core.thinking import Reasoning
from proxy.engine.upstream import Upstream
from proxy.errors import (
    ConfigError,
    ContextExceeded,
    MotabError,
    UpstreamError,
    UpstreamFailed,
    UpstreamMalformed,
    UpstreamRefused,
    UpstreamUnreachable,
)
from proxy.wiring.models import open_service
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

SGLANG = Recording("sglang-0.5.23")
MODEL, FOLLOWER = "smollm2", 81
GENERATE, TOKENIZE = "/generate", "/v1/tokenize"

SCORED_IDS: list[int] = SGLANG.request("score_two_steps")["input_ids"]
NUM_PROMPT, NUM_STEP_1, NUM_STEP_2 = 4, 3, 2

# An omitted one would be taken from the server's --preferred-sampling-params.
NEUTRAL = {
    "temperature": 0.0,
    "top_p": 1.0,
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "min_new_tokens": 0,
    "ignore_eos": False,
    "skip_special_tokens": True,
    "no_stop_trim": False,
}


def backend(up: Replay, template: str | None = None) -> SGLang:
    return SGLang(up.client, MODEL, None if template is None else ChatTemplate(template), FOLLOWER)


# Connecting.


async def test_connecting_learns_the_token_that_stands_for_text_that_follows(up: Replay) -> None:
    up.on("POST", TOKENIZE, SGLANG.answering("tokenize_follower"))
    connected = await SGLang.connect(up.client, MODEL, None)
    up.on("POST", TOKENIZE, json_reply({"tokens": [[30, 198, FOLLOWER]]}))
    assert await connected.encode([".\n"], CALL) == [Segment(".\n", (30, 198))]


async def test_a_tokenizer_that_puts_a_space_before_every_text_is_refused(up: Replay) -> None:
    up.on("POST", TOKENIZE, json_reply({"tokens": [[29871, 13, 29874], [263]]}))
    with pytest.raises(UpstreamRefused, match=r"every text .* set the upstream's `tok"):
        await SGLang.connect(up.client, MODEL, None)
    # It does not matter where another tokenizer reads.
    await SGLang.connect(up.client, MODEL, None, reads=False)


@pytest.mark.parametrize("tokens", [None, [], [[], [81]], [[81]], [198, 81], [["a"], ["a"]]])
async def test_a_tokenizer_that_does_not_say_how_it_cuts_is_malformed(
    up: Replay, tokens: Any
) -> None:
    up.on("POST", TOKENIZE, json_reply({"tokens": tokens}))
    with pytest.raises(UpstreamMalformed):
        await SGLang.connect(up.client, MODEL, None)


async def test_the_served_model_is_found(up: Replay) -> None:
    up.on("GET", "/v1/models", json_reply(SGLANG.body("models")))
    await backend(up).check()


@pytest.mark.parametrize("name", ["qwen", "adapter"])
async def test_another_model_is_refused_and_so_is_an_adapter_of_the_served_one(
    up: Replay, name: str
) -> None:
    up.on("GET", "/v1/models", json_reply(SGLANG.body("models")))
    message = f"it serves smollm2, not the configured model '{name}'"
    with pytest.raises(UpstreamRefused, match=message):
        await SGLang(up.client, name, None, FOLLOWER).check()


async def test_an_odd_list_of_models_is_our_error(up: Replay) -> None:
    up.on("GET", "/v1/models", json_reply({"models": []}))
    with pytest.raises(UpstreamError):
        await backend(up).check()


@asynccontextmanager
async def configured(up: Replay, folder: Path, reasoning: str = "none") -> AsyncIterator[Upstream]:
    """The scripted server as an upstream of kind sglang that runs one request at once."""
    if reasoning == "none":
        up.on("POST", TOKENIZE, SGLANG.answering("tokenize_follower", "encode_steps"))
    up.on("GET", "/v1/models", json_reply(SGLANG.body("models")))
    path = folder / "motab.yaml"
    path.write_text(
        f"upstreams: {{a: {{kind: sglang, base_url: '{up.client.base_url}', model: smollm2, "
        f"max_concurrent: 1, reasoning: {reasoning}}}}}\n"
        "models: {pair: {student: a, teacher: a}}\n",
        encoding="utf-8",
    )
    async with open_service(load_config(path)) as service:
        (upstream,) = service.upstreams()
        yield upstream


async def test_an_upstream_of_kind_sglang_is_served_by_this_backend(
    up: Replay, tmp_path: Path
) -> None:
    async with configured(up, tmp_path) as upstream:
        assert isinstance(upstream.reader, SGLang)
        assert [seen.path for seen in up.seen] == [TOKENIZE, "/v1/models"]
        assert upstream.reasoning == Reasoning("none")
        assert upstream.markup is upstream.reader


@pytest.mark.parametrize(
    ("reasoning", "prompt", "expected", "num_rendered"),
    [
        ("auto", "{}<A><think>\n", Reasoning("think", opened=True), 1),
        ("auto", "{}<A>", Reasoning("none"), 2),
        ("auto", "{}<|start|>assistant", Reasoning("harmony"), 1),
        ("harmony", "", Reasoning("harmony"), 0),
        ("think", "{}<A>", Reasoning("think"), 2),
        ("think", "{}<A><think>\n", Reasoning("think", opened=True), 1),
    ],
)
async def test_how_its_model_thinks_is_found_out_once(
    up: Replay,
    tmp_path: Path,
    reasoning: str,
    prompt: str,
    expected: Reasoning,
    num_rendered: int,
) -> None:
    def tokens(seen: Seen) -> Reply:
        if "messages" not in seen.body:
            return SGLANG.answering("tokenize_follower")(seen)
        return json_reply({"tokens": [len(seen.body["messages"]), 5]})

    def text(seen: Seen) -> Reply:
        assert seen.body["skip_special_tokens"] is False
        told = "Is it raining?" + ("" if seen.body["tokens"][0] == 1 else "The ground is dry")
        return json_reply({"text": prompt.format(told)})

    up.on("POST", TOKENIZE, tokens)
    up.on("POST", "/v1/detokenize", text)
    async with configured(up, tmp_path, reasoning) as upstream:
        asked = [TOKENIZE, "/v1/models"] + [TOKENIZE, "/v1/detokenize"] * num_rendered
        assert [seen.path for seen in up.seen] == asked
        assert upstream.reasoning == expected


async def test_a_tokenizer_of_our_own_reads_where_the_configuration_names_one(
    up: Replay, tmp_path: Path
) -> None:
    spaced = {"tokens": [[29871, 13, 29874], [263]]}  # as this server would refuse
    up.on("POST", TOKENIZE, json_reply(spaced))
    up.on("GET", "/v1/models", json_reply(SGLANG.body("models")))
    Tokenizer(models.BPE({"a": 0, "\n": 1}, [])).save(str(tmp_path / "tokenizer.json"))
    upstream = f"kind: sglang, base_url: '{up.client.base_url}', model: smollm2"
    path = tmp_path / "motab.yaml"

    async def reader(tokenizer: str) -> Reader:
        path.write_text(
            f"upstreams: {{a: {{{upstream}, tokenizer: '{tokenizer}'}}}}\n"
            "models: {pair: {student: a, teacher: a}}\n",
            encoding="utf-8",
        )
        async with open_service(load_config(path)) as service:
            (only,) = service.upstreams()
            return only.reader

    own = await reader(str(tmp_path))
    num_asked = len(up.bodies(TOKENIZE))
    assert (await own.render(Question(prompt="aa"), CALL)).token_ids == (0, 0)
    assert len(up.bodies(TOKENIZE)) == num_asked
    with pytest.raises(ConfigError, match=r"^upstreams\.a\.tokenizer: 'no/such/one' is neither"):
        await reader("no/such/one")


async def test_a_tiktoken_encoding_needs_a_template_to_write_prompts(
    up: Replay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    litellm = importlib.util.find_spec("litellm")
    assert litellm is not None
    assert litellm.submodule_search_locations
    cache = Path(litellm.submodule_search_locations[0], "litellm_core_utils", "tokenizers")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(cache))
    path = tmp_path / "motab.yaml"
    path.write_text(
        f"upstreams: {{a: {{kind: sglang, base_url: '{up.client.base_url}', model: smollm2, "
        "tokenizer: 'tiktoken:cl100k_base'}}\nmodels: {pair: {student: a, teacher: a}}\n",
        encoding="utf-8",
    )
    with pytest.raises(ConfigError, match=r"upstreams\.a\.tokenizer: .* set chat_template"):
        async with open_service(load_config(path)):
            pass


async def test_an_upstream_has_connections_for_a_write_and_for_what_runs_beside_it(
    up: Replay, tmp_path: Path
) -> None:
    first_events = SGLANG.body("cumulative_length").split(b"data: ")[:3]
    held = stream_reply(b"data: ".join(first_events), hold=True)
    up.on("POST", GENERATE, held, json_reply(SGLANG.body("score_two_steps")))
    async with configured(up, tmp_path) as upstream, asyncio.timeout(5):
        writing = upstream.writer.write(Context(Segment("", (1, 2, 3))), GREEDY, 8, CALL)
        async with aclosing(writing):
            await anext(writing)
            await upstream.reader.encode(["7+5 = 12.\n\n", "", "So 🚀 é 12", "42"], CALL)
            context = scored_context(NUM_STEP_1, NUM_STEP_2)
            (scorer,) = upstream.scorers
            await scorer.score(context, 2, 3, CALL, entropy_known=False)
            await upstream.writer.check()


# Rendering and encoding.


async def test_messages_are_rendered_by_the_server_s_own_template(up: Replay) -> None:
    up.on("POST", TOKENIZE, SGLANG.answering("render_chat"))
    rendered = await backend(up).render(QUESTION, CALL)
    assert rendered == Segment("", tuple(SGLANG.json("render_chat")["tokens"]))


async def test_a_raw_prompt_stands_as_it_is_and_gets_the_tokenizer_s_specials(up: Replay) -> None:
    up.on("POST", TOKENIZE, SGLANG.answering("render_prompt"))
    text = "Paris is nice.\n\nBerlin is"
    rendered = await backend(up).render(Question(prompt=text), CALL)
    assert rendered == Segment(text, (38634, 314, 9239, 30, 198, 198, 24726, 4226, 314))


async def test_a_configured_template_is_rendered_here(up: Replay) -> None:
    up.on("POST", TOKENIZE, SGLANG.answering("render_prompt"))
    templated = backend(up, "{{ messages[0].content }}\n\n{{ messages[-1].content }} is")
    question = Question((Message("system", "Paris is nice."), Message("user", "Berlin")))
    rendered = await templated.render(question, CALL)
    assert rendered.text == "Paris is nice.\n\nBerlin is"
    assert rendered.token_ids[-1] == 314


async def test_a_server_that_cannot_tell_its_prompt_stops_the_start(up: Replay) -> None:
    up.on("POST", TOKENIZE, json_reply({"tokens": [198, 81]}))
    with pytest.raises(UpstreamRefused, match="/v1/detokenize"):
        await detect_reasoning(backend(up), CALL)


async def test_markup_is_read_as_special_tokens(up: Replay) -> None:
    up.on("POST", TOKENIZE, json_reply({"tokens": [5, 6]}))
    assert await backend(up).markup("<|end|>", CALL) == Segment("<|end|>", (5, 6))
    assert up.bodies(TOKENIZE)[-1]["prompt"] == "<|end|>"
    assert up.bodies(TOKENIZE)[-1]["add_special_tokens"] is False


async def test_special_tokens_are_written_out_where_they_are_asked_for(up: Replay) -> None:
    up.on("POST", GENERATE, stream_reply(SGLANG.body("delta_eos")))
    context = Context(Segment("", (1, 2, 3)))
    async for _ in backend(up).write(context, Sampling(0.0, special_tokens=True), 9, CALL):
        pass
    sampled = up.bodies(GENERATE)[0]["sampling_params"]
    assert sampled["skip_special_tokens"] is False
    assert sampled["spaces_between_special_tokens"] is False


async def test_all_texts_are_encoded_in_one_request_and_in_their_order(up: Replay) -> None:
    up.on("POST", TOKENIZE, SGLANG.answering("encode_steps"))
    texts = ("7+5 = 12.\n\n", "", "So 🚀 é 12", "42")
    assert await backend(up).encode(texts, CALL) == [
        Segment(texts[0], (39, 27, 37, 446, 216, 33, 34, 30, 198, 198)),
        Segment(texts[1], ()),
        Segment(texts[2], (2931, 15107, 244, 218, 26411, 216, 33, 34)),
        Segment(texts[3], (36, 34)),
    ]
    assert len(up.seen) == 1


async def test_no_text_is_no_token_and_no_request(up: Replay) -> None:
    assert await backend(up).encode([], CALL) == []
    assert await backend(up).encode([""], CALL) == [Segment("", ())]
    assert up.seen == []


async def test_text_that_looks_like_a_special_token_is_sent_in_two_halves(up: Replay) -> None:
    up.on("POST", TOKENIZE, SGLANG.answering("encode_special_text"))
    (segment,) = await backend(up).encode(["<|im_end|>\nHi"], CALL)
    assert segment.token_ids == (44, 108, 306, 79, 486, 108, 46, 198, 20556)


@pytest.mark.parametrize("answer", [{"count": 2}, {"tokens": None}, [1, 2], "ids", None])
async def test_a_tokenizer_s_answer_without_tokens_is_malformed(up: Replay, answer: Any) -> None:
    up.on("POST", TOKENIZE, json_reply(answer))
    with pytest.raises(UpstreamMalformed):
        await backend(up).render(QUESTION, CALL)
    with pytest.raises(UpstreamMalformed):
        await backend(up).encode(["42"], CALL)


@pytest.mark.parametrize("tokens", [[], [[36, 34], [36]], [36], [[198, 198, 30]]])
async def test_tokens_of_fewer_or_more_texts_than_were_sent_are_malformed(
    up: Replay, tokens: Any
) -> None:
    up.on("POST", TOKENIZE, json_reply({"tokens": tokens}))
    with pytest.raises(UpstreamMalformed):
        await backend(up).encode([".\n"], CALL)


# Writing.

STREAMS: dict[str, tuple[list[str], str]] = {
    "length": (["So", " ", "", "🚀", " é", " ", "1", "2"], "length"),
    # An event of several tokens is split where the tokens' own strings spell its text.
    "length_interval4": (["So", "", "", "", " 🚀 é", " ", "1", "2"], "length"),
    "emoji_cut": (["So", " ", ""], "length"),
    "eos": (["Yes", "."], "stop"),
    "eos_interval4": (["Yes", "."], "stop"),
    # The stop string's tokens were written, its text is cut off.
    "stop": (["7", "+", "5", " =", " ", "", ""], "stop"),
    "stop_not_reached": (["7", "+", "1", " =", " ", "8"], "length"),
    "special": (["Hi", "", "", "user\n"], "length"),
}
# By default an event repeats all that came; with --incremental-streaming-output it does not.
ALL_STREAMS = [f"{mode}_{name}" for mode in ("cumulative", "delta") for name in STREAMS]


async def drafts_of(
    up: Replay, *chunks: bytes, sampling: Sampling = GREEDY, ids: tuple[int, ...] = (1, 2, 3)
) -> list[Draft]:
    up.on("POST", GENERATE, stream_reply(*chunks))
    context = Context(Segment("", ids))
    return [draft async for draft in backend(up).write(context, sampling, 24, CALL)]


async def golden_drafts(up: Replay, name: str, *chunks: bytes) -> list[Draft]:
    stop = tuple(SGLANG.request(name)["sampling_params"]["stop"])
    chunks = chunks or (SGLANG.body(name),)
    return await drafts_of(up, *chunks, sampling=Sampling(0.0, stop=stop))


@pytest.mark.parametrize("name", ALL_STREAMS)
async def test_a_stream_is_its_text_in_one_piece_a_token(up: Replay, name: str) -> None:
    pieces, end = STREAMS[name.partition("_")[2]]
    drafts = await golden_drafts(up, name)
    assert pieces_of(drafts) == pieces
    assert [draft.end for draft in drafts] == [None] * (len(drafts) - 1) + [end]


@pytest.mark.parametrize("name", STREAMS)
async def test_both_kinds_of_stream_give_the_same_drafts(up: Replay, name: str) -> None:
    cumulative = await golden_drafts(up, f"cumulative_{name}")
    assert await golden_drafts(up, f"delta_{name}") == cumulative


@pytest.mark.parametrize("name", ALL_STREAMS)
async def test_the_drafts_are_the_same_however_the_bytes_are_cut(up: Replay, name: str) -> None:
    body = SGLANG.body(name)
    whole = await golden_drafts(up, name)
    for seed in range(5):
        assert await golden_drafts(up, name, *cut(body, seed)) == whole
    assert await golden_drafts(up, name, *(body[i : i + 1] for i in range(len(body)))) == whole


async def test_events_that_the_server_drops_for_a_later_one_lose_nothing(up: Replay) -> None:
    # A busy server sends only the last of the cumulative events that wait.
    def drop(events: list[Any]) -> None:
        del events[2:7]

    drafts = await drafts_of(up, SGLANG.edited("cumulative_length", drop))
    assert pieces_of(drafts) == ["So", " ", "", "", "", "", "", "🚀 é 12"]


async def test_a_last_event_without_a_new_token_is_an_end(up: Replay) -> None:
    def nothing_new(events: list[Any]) -> None:
        last = events[-1]
        meta = last["meta_info"]
        meta["completion_tokens"] -= 1
        last["text"], last["output_ids"], meta["output_token_logprobs"] = "", [], []
        meta["finish_reason"] = {"type": "stop", "matched": None}

    drafts = await drafts_of(up, SGLANG.edited("delta_length", nothing_new))
    assert pieces_of(drafts) == STREAMS["length"][0][:-1]
    assert drafts[-1].end == "stop"


@pytest.mark.parametrize("name", ALL_STREAMS)
async def test_each_piece_brings_its_tokens_log_probability_where_asked_for(
    up: Replay, name: str
) -> None:
    stop = tuple(SGLANG.request(name)["sampling_params"]["stop"])
    asked = Sampling(0.0, stop=stop, logprobs=True)
    drafts = await drafts_of(up, SGLANG.body(name), sampling=asked)
    pieces = pieces_of(drafts)
    told = [x for draft in drafts for x in draft.logprobs or ()]
    rows: list[Any] = []
    for line in SGLANG.body(name).splitlines():
        if line.startswith(b"data: {"):
            new = orjson.loads(line[6:])["meta_info"]["output_token_logprobs"]
            rows = new if name.startswith("cumulative") else rows + new
    assert [x for one in told for x in one] == [row[0] for row in rows[: len(pieces)]]
    assert all(draft.logprobs is None for draft in await golden_drafts(up, name))


@pytest.mark.parametrize("name", ["cumulative_eos", "delta_eos"])
async def test_cached_prompt_tokens_come_with_the_last_draft(up: Replay, name: str) -> None:
    drafts = await golden_drafts(up, name)
    assert [draft.num_cached_tokens for draft in drafts] == [None, None, 2]


@pytest.mark.parametrize("name", ALL_STREAMS)
async def test_a_write_asks_for_exactly_what_the_golden_stream_answers(
    up: Replay, name: str
) -> None:
    request = SGLANG.request(name)
    sampled = request["sampling_params"]
    up.on("POST", GENERATE, stream_reply(SGLANG.body(name)))
    sampling = Sampling(
        sampled["temperature"], sampled["top_p"], sampled.get("sampling_seed"), (*sampled["stop"],)
    )
    context = Context(Segment("", tuple(request["input_ids"])))
    async for _ in backend(up).write(context, sampling, sampled["max_new_tokens"], CALL):
        pass
    assert up.bodies(GENERATE) == [request]


async def test_a_write_says_every_sampling_field(up: Replay) -> None:
    sampling = Sampling(0.6, 0.95, 1, (".\n\n", "END"))
    await drafts_of(up, SGLANG.body("delta_eos"), sampling=sampling)
    assert up.bodies(GENERATE) == [
        {
            "input_ids": [1, 2, 3],
            "sampling_params": {
                **NEUTRAL,
                "temperature": 0.6,
                "top_p": 0.95,
                "max_new_tokens": 24,
                "stop": [".\n\n", "END"],
                "sampling_seed": 1,
            },
            "stream": True,
            "return_logprob": True,
            "return_text_in_logprobs": True,
        }
    ]


async def test_closing_a_write_cancels_it_at_the_server(up: Replay) -> None:
    first_events = SGLANG.body("cumulative_length").split(b"data: ")[:3]
    up.on("POST", GENERATE, stream_reply(b"data: ".join(first_events), hold=True))
    async with aclosing(backend(up).write(Context(Segment("", (1, 2, 3))), GREEDY, 8, CALL)) as w:
        assert (await anext(w)).pieces == ("So",)
    async with asyncio.timeout(2):
        await up.left.wait()
    assert [code for *_, code in up.observed] == ["cancelled"]


# What may go wrong in a stream.


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("stream_too_long", ContextExceeded),
        ("stream_total", ContextExceeded),
        ("stream_pool", ContextExceeded),
        ("stream_bad_request", UpstreamRefused),
        ("stream_queue_full", UpstreamFailed),
        ("stream_aborted", UpstreamFailed),
    ],
)
async def test_an_error_in_the_stream_is_told_by_its_message_and_code(
    up: Replay, name: str, error: type[MotabError]
) -> None:
    with pytest.raises(error) as caught:
        await drafts_of(up, SGLANG.body(name))
    assert type(caught.value) is error


async def test_an_abort_amid_the_stream_has_failed(up: Replay) -> None:
    def abort(events: list[Any]) -> None:
        events[3]["meta_info"]["finish_reason"] = {"type": "abort", "message": "Aborted"}
        del events[4:]

    with pytest.raises(UpstreamFailed, match="Aborted"):
        await drafts_of(up, SGLANG.edited("delta_length", abort))


@pytest.mark.parametrize("end", [b"", b"data: [DONE]\n\n", b'data: {"text'])
async def test_a_stream_that_ends_without_a_finish_is_unreachable(up: Replay, end: bytes) -> None:
    events = SGLANG.body("cumulative_length").split(b"\n\n")[:3]
    with pytest.raises(UpstreamUnreachable, match="broke off"):
        await drafts_of(up, b"\n\n".join(events) + b"\n\n" + end)


async def test_a_stream_whose_connection_drops_is_unreachable(up: Replay) -> None:
    up.on("POST", GENERATE, stream_reply(SGLANG.body("delta_eos")[:600], drop_after=1))
    with pytest.raises(UpstreamUnreachable):
        async for _ in backend(up).write(Context(Segment("", (1, 2, 3))), GREEDY, 4, CALL):
            pass


def meta_of(event: Any) -> Any:
    return event["meta_info"]


BROKEN_STREAMS: dict[str, tuple[str, Callable[[list[Any]], object]]] = {
    "a delta is lost": ("delta_length", lambda e: e.pop(3)),
    "a delta came twice": ("delta_length", lambda e: e.insert(3, e[3])),
    "a cumulative text changed": ("cumulative_length", lambda e: e[3].update(text="Xo 🚀")),
    "no token strings": ("delta_length", lambda e: meta_of(e[1]).pop("output_token_logprobs")),
    "too few token strings": (
        "cumulative_length",
        lambda e: meta_of(e[4])["output_token_logprobs"].pop(),
    ),
    "no token ids": ("delta_length", lambda e: e[1].pop("output_ids")),
    "no text": ("delta_length", lambda e: e[1].pop("text")),
    "a null text": ("delta_length", lambda e: e[1].update(text=None)),
    "a null cumulative text": ("cumulative_length", lambda e: e[1].update(text=None)),
    "null token strings": (
        "delta_length_interval4",
        lambda e: [t.__setitem__(2, None) for t in meta_of(e[1])["output_token_logprobs"]],
    ),
    "no count": ("delta_length", lambda e: meta_of(e[1]).pop("completion_tokens")),
    "no finish_reason": ("delta_length", lambda e: meta_of(e[1]).pop("finish_reason")),
    "a cut prompt": ("delta_length", lambda e: meta_of(e[0]).update(prompt_tokens=2)),
    "an unknown end": (
        "delta_length",
        lambda e: meta_of(e[-1]).update(finish_reason={"type": "tired"}),
    ),
    # So SGLang ends a request whose logits are NaN.
    "NaN in the model": (
        "delta_length",
        lambda e: meta_of(e[-1]).update(finish_reason={"type": "stop", "matched": "NaN happened"}),
    ),
}


@pytest.mark.parametrize("broken", BROKEN_STREAMS)
async def test_a_stream_in_which_something_is_missing_is_malformed(up: Replay, broken: str) -> None:
    name, edit = BROKEN_STREAMS[broken]
    with pytest.raises(UpstreamMalformed, match="a stream event is not what was asked for"):
        await drafts_of(up, SGLANG.edited(name, edit))


@pytest.mark.parametrize("event", [b"{oops}", b"{}", b"7", b"null", b'{"error": "text"}'])
async def test_an_event_of_another_shape_is_malformed(up: Replay, event: bytes) -> None:
    with pytest.raises(UpstreamMalformed, match="a stream event is not what was asked for"):
        await drafts_of(up, b"data: " + event + b"\n\n")


# Scoring.


def scored_context(*lengths: int) -> Context:
    """The golden scoring prompt; its last tokens are cut into steps of these lengths."""
    return steps_at_the_end(SCORED_IDS, *lengths)


async def scores_of(up: Replay, payload: Any, *lengths: int, entropy_known: bool = False) -> Scores:
    up.on("POST", GENERATE, json_reply(payload))
    context = scored_context(*(lengths or (NUM_STEP_1, NUM_STEP_2)))
    num_new = len(lengths or (NUM_STEP_1, NUM_STEP_2))
    return await backend(up).score(context, num_new, 3, CALL, entropy_known=entropy_known)


def with_meta(edit: Callable[[Any], object]) -> Any:
    payload = SGLANG.json("score_two_steps")
    edit(payload["meta_info"])
    return payload


async def test_values_and_entropies_are_those_of_the_entries_by_hand(up: Replay) -> None:
    scores = await scores_of(up, SGLANG.body("score_two_steps"))
    first, second = scores.steps
    # Copied from the payload: -1.25, -0.5, -2.75 and -0.125, -4.5.
    assert first.value == pytest.approx(0.2231301601, rel=1e-9)
    assert second.value == pytest.approx(0.0990134, rel=1e-5)
    assert first.entropy == pytest.approx(entropy_from(-0.75, -1.25, -2.0), rel=1e-9)
    assert second.entropy == pytest.approx(entropy_from(-0.125, -2.5, -4.0), rel=1e-9)
    assert scores.next_entropy == pytest.approx(entropy_from(-0.625, -1.0, -3.5), rel=1e-9)
    assert (first.num_tokens, second.num_tokens) == (3, 2)
    assert (scores.num_tokens, scores.num_cached_tokens) == (5, 3)


async def test_a_scoring_call_begins_one_token_early_so_that_the_null_entry_is_the_prompt_s(
    up: Replay,
) -> None:
    await scores_of(up, SGLANG.body("score_two_steps"))
    assert up.bodies(GENERATE) == [
        {
            "input_ids": SCORED_IDS,
            "sampling_params": {**NEUTRAL, "max_new_tokens": 1},
            "return_logprob": True,
            "logprob_start_len": NUM_PROMPT - 1,
            "top_logprobs_num": 3,
        }
    ]
    assert up.bodies(GENERATE) == [SGLANG.request("score_two_steps")]


async def test_entries_that_begin_one_token_off_are_malformed(up: Replay) -> None:
    """Either way, even where their number is right and each would pass for a probability."""

    def later(meta: Any) -> None:  # as if the leading null were not there
        for key in ("input_token_logprobs", "input_top_logprobs"):
            meta[key] = [*meta[key][1:], meta[key][-1]]

    def later_without_ids(meta: Any) -> None:
        meta["input_top_logprobs"] = [*meta["input_top_logprobs"][1:], [[-1.0, 1, None]] * 3]

    def earlier(meta: Any) -> None:
        for key in ("input_token_logprobs", "input_top_logprobs"):
            meta[key] = [meta[key][0], *meta[key][:-1]]

    for shift in (later, later_without_ids, earlier):
        with pytest.raises(UpstreamMalformed):
            await scores_of(up, with_meta(shift))


async def test_only_the_new_steps_are_scored_and_the_start_is_theirs(up: Replay) -> None:
    both = await scores_of(up, SGLANG.body("score_two_steps"))

    def from_step_2(meta: Any) -> None:
        rows, tops = meta["input_token_logprobs"], meta["input_top_logprobs"]
        rows[:4] = [[None, SCORED_IDS[6], None]]
        tops[:4] = [None]

    async with replay() as other:
        payload = with_meta(from_step_2)
        other.on("POST", GENERATE, json_reply(payload))
        context = scored_context(NUM_STEP_1, NUM_STEP_2)
        last = await backend(other).score(context, 1, 3, CALL, entropy_known=False)
        assert other.bodies(GENERATE)[0]["logprob_start_len"] == 6
    assert last.steps == both.steps[1:]
    assert last.num_tokens == 2


async def test_a_known_entropy_changes_nothing_for_one_number_asks_for_both_top_ks(
    up: Replay,
) -> None:
    known = await scores_of(up, SGLANG.body("score_two_steps"), entropy_known=True)
    unknown = await scores_of(up, SGLANG.body("score_two_steps"))
    assert known == unknown
    assert up.bodies(GENERATE)[0] == up.bodies(GENERATE)[1]


async def test_the_next_entropy_is_not_taken_from_the_sampled_token(up: Replay) -> None:
    def other_sample(meta: Any) -> None:
        meta["output_token_logprobs"] = [[-3.5, 2, None]]

    scores = await scores_of(up, with_meta(other_sample))
    assert scores.next_entropy == pytest.approx(entropy_from(-0.625, -1.0, -3.5), rel=1e-9)


async def test_a_candidate_too_many_is_dropped(up: Replay) -> None:
    def one_more(meta: Any) -> None:
        meta["input_top_logprobs"][1].append([-7.0, 99, None])
        meta["output_top_logprobs"][0].insert(0, [-7.0, 99, None])

    assert await scores_of(up, with_meta(one_more)) == await scores_of(
        up, SGLANG.body("score_two_steps")
    )


@pytest.mark.parametrize("lowest", [-3.4028234663852886e38, -3.3895313892515355e38])
async def test_an_impossible_token_makes_the_value_zero(up: Replay, lowest: float) -> None:
    def impossible(meta: Any) -> None:
        meta["input_token_logprobs"][5][0] = lowest
        meta["output_top_logprobs"][0][2][0] = lowest

    scores = await scores_of(up, with_meta(impossible))
    assert [step.value > 0 for step in scores.steps] == [True, False]
    assert scores.next_entropy == pytest.approx(entropy_from(-0.625, -1.0), rel=1e-9)


async def test_the_vocabulary_s_last_token_is_told_as_token_0(up: Replay) -> None:
    def clipped(meta: Any) -> None:
        meta["input_token_logprobs"][5][1] = 0

    whole = await scores_of(up, SGLANG.body("score_two_steps"))
    assert await scores_of(up, with_meta(clipped)) == whole


async def test_a_server_that_does_not_tell_of_its_cache_is_not_taken_for_an_empty_one(
    up: Replay,
) -> None:
    payload = with_meta(lambda meta: meta.pop("cached_tokens"))
    assert (await scores_of(up, payload)).num_cached_tokens is None


# What may be wrong with a score.

BROKEN: dict[str, Callable[[Any], object]] = {
    "no prompt values": lambda m: m.pop("input_token_logprobs"),
    "null prompt values": lambda m: m.update(input_token_logprobs=None),
    "no prompt candidates": lambda m: m.pop("input_top_logprobs"),
    "a value too few": lambda m: m["input_token_logprobs"].pop(),
    "a value too many": lambda m: m["input_token_logprobs"].append([-1.0, 34, None]),
    "candidates of a token too few": lambda m: m["input_top_logprobs"].pop(),
    "a null value": lambda m: m["input_token_logprobs"][2].__setitem__(0, None),
    "a null entry": lambda m: m["input_token_logprobs"].__setitem__(2, None),
    "a positive value": lambda m: m["input_token_logprobs"][2].__setitem__(0, 0.5),
    "a value that is text": lambda m: m["input_token_logprobs"][2].__setitem__(0, "-1"),
    "a value of another token": lambda m: m["input_token_logprobs"][2].__setitem__(1, 28),
    "a value without its token": lambda m: m["input_token_logprobs"].__setitem__(2, [-1.0]),
    "a leading value": lambda m: m["input_token_logprobs"][0].__setitem__(0, -1.0),
    "leading candidates": lambda m: m["input_top_logprobs"].__setitem__(0, [[-1.0, 9, None]] * 3),
    "null candidates": lambda m: m["input_top_logprobs"].__setitem__(4, None),
    "a candidate too few": lambda m: m["input_top_logprobs"][4].pop(),
    "a null candidate": lambda m: m["input_top_logprobs"][4][2].__setitem__(0, None),
    "no next candidates": lambda m: m.pop("output_top_logprobs"),
    "no next token": lambda m: m["output_top_logprobs"].clear(),
    "two next tokens": lambda m: m["output_top_logprobs"].append([[-1.0, 9, None]] * 3),
    "a next candidate too few": lambda m: m["output_top_logprobs"][0].pop(),
    "a null next candidate": lambda m: m["output_top_logprobs"][0][0].__setitem__(0, None),
    "no finish_reason": lambda m: m.pop("finish_reason"),
}


@pytest.mark.parametrize("broken", BROKEN)
async def test_a_score_from_an_incomplete_answer_is_malformed(up: Replay, broken: str) -> None:
    with pytest.raises(UpstreamMalformed):
        await scores_of(up, with_meta(BROKEN[broken]))
    assert not UpstreamMalformed.retryable


@pytest.mark.parametrize("payload", [{}, {"meta_info": None}, [], [{}], None, "text"])
async def test_an_answer_without_meta_info_is_malformed(up: Replay, payload: Any) -> None:
    with pytest.raises(UpstreamMalformed):
        await scores_of(up, payload)


@pytest.mark.parametrize("literal", [b"NaN", b"Infinity", b"-Infinity"])
async def test_a_log_probability_that_no_json_can_hold_gives_no_score(
    up: Replay, literal: bytes
) -> None:
    body = SGLANG.body("score_two_steps")
    assert body.count(b"[-4.5,") == 1
    with pytest.raises((UpstreamMalformed, UpstreamFailed)):
        await scores_of(up, body.replace(b"[-4.5,", b"[" + literal + b","))


async def test_a_step_without_tokens_has_no_score(up: Replay) -> None:
    with pytest.raises(UpstreamMalformed):
        await scores_of(up, SGLANG.body("score_two_steps"), 5, 0)


async def test_a_context_that_is_all_step_has_no_score_for_its_first_token(up: Replay) -> None:
    def whole(meta: Any) -> None:
        meta["input_token_logprobs"] = [[None, 2931, None], [-4.5, 34, None]]
        meta["input_top_logprobs"] = [None, [[-1.0, 9, None]] * 3]

    up.on("POST", GENERATE, json_reply(with_meta(whole)))
    context = Context(Segment("", ()), [Segment("So 2", (2931, 34))])
    with pytest.raises(UpstreamMalformed, match="missing"):
        await backend(up).score(context, 1, 3, CALL, entropy_known=False)
    assert up.bodies(GENERATE)[0]["logprob_start_len"] == 0


async def test_an_aborted_scoring_call_has_failed_though_its_status_is_200(up: Replay) -> None:
    with pytest.raises(UpstreamFailed, match="Abort in waiting queue"):
        await scores_of(up, SGLANG.body("score_aborted"))


# Errors by status.


@pytest.mark.parametrize(
    ("name", "status", "error"),
    [
        ("error_too_long", 400, ContextExceeded),
        ("error_total", 400, ContextExceeded),
        ("error_pool", 400, ContextExceeded),
        ("error_bad_request", 400, UpstreamRefused),
        ("error_contract", 400, UpstreamRefused),
        ("error_queue_full", 503, UpstreamFailed),
    ],
)
async def test_an_error_is_the_same_for_writing_and_scoring(
    up: Replay, name: str, status: int, error: type[MotabError]
) -> None:
    up.on("POST", GENERATE, json_reply(SGLANG.body(name), status))
    with pytest.raises(error):
        await backend(up).score(scored_context(2), 1, 3, CALL, entropy_known=False)
    with pytest.raises(error):
        await anext(backend(up).write(scored_context(2), GREEDY, 4, CALL))


# Token log-probabilities.


async def logprobs_of(up: Replay, rows: list[Any]) -> tuple[ScoredToken, ...]:
    """Of the last step "\nSo2"; `rows` are what the server tells from the token before it."""
    meta = {**SGLANG.json("score_two_steps")["meta_info"], "input_token_logprobs": rows}
    up.on("POST", GENERATE, json_reply({"text": ".", "output_ids": [30], "meta_info": meta}))
    context = scored_context(3, 2)
    context.steps[-1] = Segment("So2", context.steps[-1].token_ids)
    return await backend(up).token_logprobs(context, CALL)


async def test_every_token_of_the_last_step_has_its_end_and_its_log_probability(up: Replay) -> None:
    tokens = await logprobs_of(up, [[None, 198, "\n"], [-0.125, 2931, "So"], [-4.5, 34, "2"]])
    assert tokens == (ScoredToken(2, -0.125), ScoredToken(3, -4.5))
    (body,) = up.bodies(GENERATE)
    assert body["logprob_start_len"] == len(SCORED_IDS) - 3
    assert body["return_text_in_logprobs"] is True
    assert "top_logprobs_num" not in body


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        ([[None, 198, "\n"], [-0.1, 2931, "So"]], "3 entries asked for, 2 came"),
        ([[-1.0, 198, "\n"], [-0.1, 2931, "So"], [-0.2, 34, "2"]], "one token off"),
        ([[None, 198, "\n"], [-0.1, 2931, "So"], [-0.2, 35, "2"]], "the entry is token 35's"),
        ([[None, 198, "\n"], [-0.1, 2931, "So"], [-0.2, 34, "3"]], "do not spell the text"),
    ],
)
async def test_entries_that_are_not_the_text_s_are_malformed(
    up: Replay, rows: list[Any], fault: str
) -> None:
    with pytest.raises(UpstreamMalformed, match=fault):
        await logprobs_of(up, rows)
