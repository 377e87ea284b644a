"""Describes llama.cpp's own server to the contract, from payloads recorded from build b11549."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import orjson
import pytest

from proxy.backends.base import Context, Message, Question, Sampling, ScoredToken, Segment
from proxy.backends.servers.llamacpp import LlamaCpp
from proxy.backends.tokens.chat_template import ChatTemplate
from proxy.core.types import FinishReason, StepScore
from proxy.errors import ContextExceeded, UpstreamRefused
from tests.support.paths import GOLDEN
from tests.support.replay import Answer, Recording, Replay, Reply, Seen, json_reply
from tests.support.scores import entropy_from, geometric_mean
from tests.support.servers import contract

RECORDED: Final = Recording("llamacpp-b11549")
FOLLOWER: Final = 81
COMPLETION: Final = "/completion"
LOWEST: Final = -3.4028234663852886e38
STEPS: Final = ("7+5 = 12.\n\n", "So é 12")
ASKED: Final = contract.Asked(Context(Segment("", (1, 2, 3))))
NEUTRAL: Final[Mapping[str, Any]] = {
    "samplers": ["penalties", "temperature", "top_k", "top_p", "min_p"],
    "mirostat": 0,
    "dynatemp_range": 0.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repeat_penalty": 1.0,
}
"""The values that change nothing. The recordings named only the samplers that did something, which
leaves the others out as well."""
UNCHANGED: Final[Mapping[int, contract.Edit]] = {}


def backend(up: Replay, template: str | None = None, num_slots: int = 2) -> LlamaCpp:
    """The backend, with its own template or with the server's."""
    chat_template = None if template is None else ChatTemplate(template)
    return LlamaCpp(up.client, chat_template, num_slots, FOLLOWER)


# Writing.

ENDED: Final = ("stream_eos", "stream_sampled", "stream_logprobs_eos")
"""The model ended these with a token that is no text."""
_STREAMS: dict[str, tuple[str, int, FinishReason]] = {
    "stream_emoji": ("🎉🌍🎉🌍", 12, "length"),
    "stream_emoji_cut": ("🎉🌍", 8, "length"),
    "stream_limit": (" nice.\n\nThe only", 6, "length"),
    "stream_stop_word": (" nice", 4, "stop"),  # its tokens were written, its text is cut off
    "stream_stop_mid_token": (" ", 1, "stop"),
    "stream_stop_not_reached": (" nice.\n\nThe only", 6, "length"),
    "stream_eos": ("Yes.", 2, "stop"),
    "stream_sampled": ("Yes. I'm ready to help.", 8, "stop"),
    "stream_logprobs_eos": ("Yes.", 2, "stop"),
    "stream_logprobs_emoji": ("🎉🌍🎉🌍", 12, "length"),
    "stream_logprobs_stop_not_reached": (" nice.\n\nThe only", 6, "length"),
}
_PIECES: dict[str, tuple[str, ...]] = {
    "stream_emoji": ("", "", "🎉", "", "", "🌍") * 2,
    "stream_emoji_cut": ("", "", "🎉", "", "", "🌍", "", ""),
    "stream_stop_not_reached": (" nice", "", "", "", ".\n\nThe", " only"),
    "stream_logprobs_eos": ("Yes", "."),
    "stream_logprobs_emoji": ("", "", "🎉", "", "", "🌍") * 2,
    "stream_logprobs_stop_not_reached": (" nice", "", "", "", ".\n\nThe", " only"),
}
_LOGPROBS: dict[str, tuple[float, ...]] = {
    "stream_logprobs_eos": (-1.0310745239257812, -0.3918466866016388),
    # The tokens inside a character have none, and so no zeros.
    "stream_logprobs_emoji": (math.nan, math.nan, -0.7547796964645386),
    "stream_logprobs_stop_not_reached": (
        -0.19169242680072784,
        -0.020708542317152023,
        -0.061251718550920486,
        -0.0028776167891919613,
        -2.714951753616333,
    ),
}


def _stream(name: str) -> contract.Stream:
    text, num_pieces, end = _STREAMS[name]
    request = RECORDED.request(name)
    stop, seed = tuple(request["stop"]), request.get("seed")
    sampling = Sampling(
        request["temperature"], request["top_p"], seed, stop, logprobs="n_probs" in request
    )
    context = Context(Segment("", tuple(request["prompt"])))
    return contract.Stream(
        body=RECORDED.body(name),
        asked=contract.Asked(context, sampling, request["n_predict"]),
        text=text,
        end=end,
        num_pieces=num_pieces,
        pieces=_PIECES.get(name),
        logprobs=_LOGPROBS.get(name),
        request={**request, **NEUTRAL, "top_p": request["top_p"]},
    )


def _resumable(recorded: str) -> contract.Resumable:
    events = RECORDED.events(recorded)
    tokens = tuple((token, row["content"]) for row in events for token in row["tokens"])
    # Half characters come without their ids.
    return contract.Resumable(RECORDED.body(recorded), tokens, hides_ids=True)


WRITING: Final = contract.WritingContract(
    path=COMPLETION,
    writer=contract.always(backend),
    asked=ASKED,
    streams={name: _stream(name) for name in _STREAMS},
    cached={"stream_emoji_cut": (RECORDED.body("stream_emoji_cut"), (None, None, 53))},
    sent={
        **NEUTRAL,
        "prompt": [1, 2, 3],
        "n_predict": 24,
        "stream": True,
        "cache_prompt": True,
        "temperature": 0.6,
        "top_p": 0.95,
        "stop": [".\n\n", "END"],
        "seed": 1,
        "id_slot": 0,
    },
    begun=contract.first_events(RECORDED.body("stream_limit"), 1),
    first=(" nice",),
    breaks={"a comment": b": nothing\n\n", "half an event": b'data: {"cont'},
    failures={
        "a full context": contract.Failure(
            RECORDED.body("stream_error"), ContextExceeded, "Context size has been exceeded"
        )
    },
    odd_events=contract.ODD_EVENTS
    | {
        "no count": b'{"content": "a"}',
        "no content": b'{"content": null, "tokens_predicted": 1}',
        "a list": b"[1]",
        "no timings": b'{"content": "", "tokens_predicted": 1, "stop": true, "stop_type": "limit"}',
    },
    health="/health",
    healthy=RECORDED.json("health"),
    resumable={
        name: _resumable(name)
        for name in ("stream_limit", "stream_emoji", "stream_stop_not_reached")
    },
    prompt_and_limit=lambda body: (body["prompt"], body["n_predict"]),
)


# Reading.


def connected(up: Replay) -> None:
    """Script what connecting asks for."""
    up.on("GET", "/props", json_reply(RECORDED.body("props")))
    up.on("POST", "/tokenize", RECORDED.answering("tokenize_follower"))


def _rendering(up: Replay) -> None:
    up.on("POST", "/apply-template", RECORDED.answering("apply_template"))
    up.on("POST", "/tokenize", RECORDED.answering("render_chat"))


def _special_text(seen: Seen) -> Reply:
    """The recorded tokens; the word alone, about which the server is asked first, has all but two.

    That is not recorded.
    """
    tokens = RECORDED.json("encode_special_text")["tokens"]
    return json_reply({"tokens": tokens if "Hi" in seen.body["content"] else tokens[:-2]})


_PROMPT: str = RECORDED.json("apply_template")["prompt"]
READING: Final = contract.ReadingContract(
    path="/tokenize",
    connect=lambda up: LlamaCpp.connect(up.client, None),
    connected=connected,
    reader=backend,
    rendering=_rendering,
    rendered=Segment(_PROMPT, tuple(RECORDED.json("render_chat")["tokens"])),
    template=(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "<|im_start|>assistant\n{{ '' }}"
    ),
    templated=(
        Question((Message("user", "Hi"),)),
        RECORDED.answering("render_template"),
        Segment(
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
            (1, 4093, 198, 26843, 2, 198, 1, 520, 9531, 198),
        ),
    ),
    raw_prompt=RECORDED.answering("render_prompt"),
    markup_request={"content": "<|end|>", "add_special": False, "parse_special": True},
    encoding=RECORDED.answering("encode_step1", "encode_step2", "encode_step4"),
    encoded=(
        Segment(STEPS[0], (39, 27, 37, 446, 216, 33, 34, 30, 198, 198)),
        Segment(STEPS[1], (2931, 26411, 216, 33, 34)),
        Segment("42", (36, 34)),
    ),
    special_text=_special_text,
    special_text_ids=(44, 108, 306, 79, 486, 108, 46, 198, 26843),
    no_text=RECORDED.answering("encode_empty"),
    unconnectable={"nothing": {}, "no tokens": {"tokens": []}},
)


# Scoring.


def exchanges(name: str) -> list[tuple[Any, Any]]:
    """The recorded requests of one scoring and their answers."""
    path = GOLDEN / RECORDED.version / f"{name}.jsonl"
    rows = [orjson.loads(line) for line in path.read_bytes().splitlines()]
    return [(row["request"], orjson.loads(row["body"])) for row in rows]


def scored_prompts() -> list[list[int]]:
    """The prompt of each forced token."""
    return [request["prompt"] for request, _ in exchanges("score")]


def scored_context() -> Context:
    """The recorded scoring prompt in its two steps."""
    ids = [*scored_prompts()[-1], 34]
    return Context(
        Segment("", tuple(ids[:37])),
        [Segment(STEPS[0], tuple(ids[37:47])), Segment(STEPS[1], tuple(ids[47:]))],
    )


def forced(
    edits: Mapping[int, contract.Edit] = UNCHANGED,
    spelt: Callable[[bytes], bytes] = lambda body: body,
) -> Answer:
    """The recorded answer to each forced token; those with an edit are changed first."""
    rows = exchanges("score")
    for index, edit in edits.items():
        edit(rows[index][1])

    def answer(seen: Seen) -> Reply:
        for request, reply in rows:
            # The slot is no part of the answer.
            if {**request, **NEUTRAL} == seen.body | {"id_slot": 0}:
                return json_reply(spelt(orjson.dumps(reply)))
        return json_reply({"error": f"not recorded: {seen.body}"}, 404)

    return answer


def probabilities(reply: Any) -> Any:
    """The part of an answer that describes its forced token."""
    return reply["completion_probabilities"][0]


def _step_score(start: int, end: int) -> StepScore:
    rows = [probabilities(reply) for _, reply in exchanges("score")[start:end]]
    top = [candidate["logprob"] for candidate in rows[0]["top_logprobs"]]
    value = geometric_mean([row["logprob"] for row in rows])
    return StepScore(value, entropy_from(*top), end - start)


def set_logprob(logprob: float) -> contract.Edit:
    """An edit that gives the forced token this log-probability."""
    return lambda reply: probabilities(reply).update(logprob=logprob)


BROKEN: Final[dict[str, contract.Edit]] = {
    "probabilities of nothing": lambda reply: reply["completion_probabilities"].clear(),
    "null probabilities": lambda reply: reply.update(completion_probabilities=None),
    "another token": lambda reply: probabilities(reply).update(id=5),
    "a null log-probability": lambda reply: probabilities(reply).update(logprob=None),
    "a positive log-probability": set_logprob(0.5),
    "no log-probability": lambda reply: probabilities(reply).pop("logprob"),
    "a candidate too few": lambda reply: probabilities(reply)["top_logprobs"].pop(),
    "no candidates": lambda reply: probabilities(reply).pop("top_logprobs"),
    "null candidates": lambda reply: probabilities(reply).update(top_logprobs=None),
}
_BROKEN_AT_FIRST: dict[str, contract.Edit] = {
    "a null candidate": lambda reply: probabilities(reply)["top_logprobs"][-1].update(logprob=None),
    "no timings": lambda reply: reply.pop("timings"),
    "null timings": lambda reply: reply.update(timings=None),
}


def _broken() -> dict[str, Callable[[], contract.Played]]:
    edits = {f"{name}, later": {12: edit} for name, edit in BROKEN.items()}
    edits |= {f"{name}, first": {0: edit} for name, edit in (BROKEN | _BROKEN_AT_FIRST).items()}
    return {name: partial(forced, edit) for name, edit in edits.items()}


def _with_literal(literal: bytes) -> contract.Played:
    logprob = b'"logprob":' + orjson.dumps(probabilities(exchanges("score")[12][1])["logprob"])
    return forced(spelt=lambda body: body.replace(logprob, b'"logprob":' + literal))


def _without_tokens() -> Context:
    context = scored_context()
    return Context(context.prompt, [context.steps[0], Segment("", ())])


def _token_answers(up: Replay) -> None:
    rows = [(request["prompt"], reply) for request, reply in exchanges("score")]

    def answer(seen: Seen) -> Reply:
        return json_reply(next(reply for prompt, reply in rows if prompt == seen.body["prompt"]))

    up.on("POST", COMPLETION, answer)
    up.on("POST", "/tokenize", RECORDED.answering("encode_step2"))


def _tokens() -> tuple[ScoredToken, ...]:
    logprobs = [probabilities(reply)["logprob"] for _, reply in exchanges("score")[10:15]]
    # "So", " é" with its two bytes, " ", "1", "2".
    return tuple(map(ScoredToken, [2, 5, 6, 7, 8], logprobs))


SCORING: Final = contract.ScoringContract(
    path=COMPLETION,
    scorer=backend,
    context=scored_context,
    num_new=2,
    top_k=20,
    recorded=forced,
    steps=lambda: [_step_score(0, 10), _step_score(10, 15)],
    next_entropy=lambda: None,
    num_cached=exchanges("score")[0][1]["timings"]["cache_n"],
    known_values=pytest.approx((0.42086222, 0.00108224), rel=1e-5),
    known_entropies=tuple(pytest.approx(h, rel=1e-6) for h in (2.1338899, 2.0502363)),
    of_last_step=forced,
    impossible={"the lowest float": lambda: forced({12: set_logprob(LOWEST)})},
    broken=_broken(),
    with_literal=_with_literal,
    without_tokens=_without_tokens,
    token_context=scored_context,
    token_answers=_token_answers,
    tokens=_tokens,
    token_requests=lambda: [
        {**request, **NEUTRAL, "n_probs": 1} for request, _ in exchanges("score")[10:15]
    ],
    refusals=contract.error_answers(
        RECORDED,
        {
            (400, ContextExceeded): ("too_long",),
            (400, UpstreamRefused): ("bad_id",),
            (404, UpstreamRefused): ("bad_path",),
        },
    ),
)

SERVER: Final = contract.Server(kind="llamacpp", writing=WRITING, reading=READING, scoring=SCORING)
