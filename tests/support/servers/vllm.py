"""Describes vLLM to the contract, from payloads recorded from vLLM 0.32.0."""

from collections.abc import Callable
from typing import Any, Final

import orjson
import pytest

from proxy.backends.base import Context, Sampling, ScoredToken, Segment
from proxy.backends.servers.vllm import Vllm
from proxy.backends.tokens.chat_template import ChatTemplate
from proxy.core.types import FinishReason, StepScore
from proxy.errors import ContextExceeded, UpstreamFailed, UpstreamRefused
from tests.support.replay import Recording, Replay, Reply, Seen, json_reply
from tests.support.scores import entropy_from, geometric_mean, steps_at_the_end
from tests.support.servers import contract

RECORDED: Final = Recording("vllm-0.32.0")
MODEL: Final = "smollm2"
FOLLOWER: Final = 81
COMPLETIONS: Final = "/v1/completions"
STEPS: Final = ("7+5 = 12.\n\n", "So 🚀 é 12")
SCORED_IDS: list[int] = RECORDED.request("score_two_steps")["prompt"]
NUM_PROMPT, NUM_STEP_1, NUM_STEP_2 = 37, 10, 8
ASKED: Final = contract.Asked(Context(Segment("", (1, 2, 3))))
# An omitted one would be taken from the model's generation_config.json.
NEUTRAL: Final[dict[str, Any]] = {
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
    """The backend, with its own template or with the server's."""
    return Vllm(up.client, MODEL, None if template is None else ChatTemplate(template), FOLLOWER)


# Writing.

_LENGTH = "To boil an egg:\n\n1. Boil the egg in a double boiler or under a heavy-bottled kettle"
_HELD = "1. Boil the egg until it is fully cooked.\n2. Remove the egg from the"
_STREAMS: dict[str, tuple[str, int, FinishReason]] = {
    "length": (_LENGTH, 24, "length"),
    "emoji": ("🎉🌍🎉🌍🎉", 16, "length"),
    "emoji_cut": ("🎉", 5, "length"),
    "eos": ("Yes.", 2, "stop"),
    "first_eos": ("1. Boil the", 5, "stop"),
    "stop": (" nice", 4, "stop"),  # the stop string's tokens were written, its text is cut off
    "stop_not_reached": (_HELD, 20, "length"),
    "special": ("", 6, "length"),
}
_ASKED_FOR_MORE = ("first_eos", "special")


def _stream(interval: int, name: str) -> contract.Stream:
    text, num_pieces, end = _STREAMS[name]
    recorded = f"interval{interval}_{name}"
    request = RECORDED.request(recorded)
    sampling = Sampling(
        request["temperature"], request["top_p"], request.get("seed"), tuple(request["stop"])
    )
    told = [
        c["logprobs"]["token_logprobs"] for e in RECORDED.events(recorded) for c in e["choices"]
    ]
    return contract.Stream(
        body=RECORDED.body(recorded),
        asked=contract.Asked(
            Context(Segment("", tuple(request["prompt"]))), sampling, request["max_tokens"]
        ),
        text=text,
        end=end,
        num_pieces=num_pieces,
        # The end token's, which is no text, is left out.
        logprobs=tuple([x for row in told for x in row][:num_pieces]),
        request=None if name in _ASKED_FOR_MORE else request,
    )


def _resumable(recorded: str) -> contract.Resumable:
    choices = [choice for event in RECORDED.events(recorded) for choice in event["choices"]]
    tokens = [
        pair
        for choice in choices
        for pair in zip(choice["token_ids"], choice["logprobs"]["tokens"], strict=True)
    ]
    return contract.Resumable(RECORDED.body(recorded), tuple(tokens), "special" in recorded)


WRITING: Final = contract.WritingContract(
    path=COMPLETIONS,
    writer=contract.always(backend),
    asked=ASKED,
    # A server that sends a chunk a token, and one that sends a chunk 8 tokens.
    streams={f"interval{n}_{name}": _stream(n, name) for n in (1, 8) for name in _STREAMS},
    cached={"prompt_cached": (RECORDED.body("prompt_cached"), (None, None, 384))},
    sent={
        **NEUTRAL,
        **contract.COMPLETION_FIELDS,
        "prompt": [1, 2, 3],
        "return_token_ids": True,
        "logprobs": 0,
    },
    begun=contract.first_events(RECORDED.body("interval8_length"), 2),
    first=("To",),
    failures={
        # [DONE] comes after it.
        "a dead engine": contract.Failure(
            contract.first_events(RECORDED.body("interval8_length"), 2)
            + b"\n\n".join(RECORDED.body("engine_killed_midstream").split(b"\n\n")[-3:]),
            UpstreamFailed,
            "EngineCore encountered an issue",
        )
    },
    breaks=contract.BREAKS | {"half an event": b'data: {"choi'},
    odd_events=contract.ODD_COMPLETIONS
    | {
        "no tokens": b'{"choices": [{"text": "a"}]}',
        "no text": (
            b'{"choices": [{"text": null, "token_ids": [64], "logprobs": {"tokens": ["a"]}}]}'
        ),
    },
    healthy=RECORDED.json("models"),
    resumable={
        recorded: _resumable(recorded)
        for n in (1, 8)
        for name in ("length", "emoji", "special", "stop_not_reached")
        for recorded in (f"interval{n}_{name}",)
    },
    prompt_and_limit=lambda body: (body["prompt"], body["max_tokens"]),
)


# Reading.


def _connected(up: Replay) -> None:
    up.on("POST", "/tokenize", RECORDED.answering("tokenize_follower", "tokenize_follower_alone"))


def _special_text(seen: Seen) -> Reply:
    """The two halves, in which the server sees no special token; not recorded."""
    halves = {"<": [44], "|im_end|>\nHi": [108, 306, 79, 486, 108, 46, 198, 20556]}
    return json_reply({"tokens": halves[seen.body["prompt"]]})


_FOLLOWER_REPLY: dict[str, Any] = RECORDED.json("tokenize_follower")
READING: Final = contract.ReadingContract(
    path="/tokenize",
    connect=lambda up: Vllm.connect(up.client, MODEL, None),
    connected=_connected,
    reader=backend,
    rendering=lambda up: up.on("POST", "/tokenize", RECORDED.answering("render_chat")),
    rendered=Segment("", tuple(SCORED_IDS[:NUM_PROMPT])),
    template=contract.TEMPLATE,
    templated=(contract.TEMPLATED, RECORDED.answering("render_prompt"), contract.PARIS),
    raw_prompt=RECORDED.answering("render_prompt"),
    markup_request={"model": MODEL, "prompt": "<|end|>", "add_special_tokens": False},
    encoding=RECORDED.answering("encode_step1", "encode_step2", "encode_step3"),
    encoded=(
        Segment(STEPS[0], (39, 27, 37, 446, 216, 33, 34, 30, 198, 198)),
        Segment(STEPS[1], (2931, 15107, 244, 218, 26411, 216, 33, 34)),
        Segment("42", (36, 34)),
    ),
    special_text=_special_text,
    special_text_ids=(44, 108, 306, 79, 486, 108, 46, 198, 20556),
    no_text=None,
    unconnectable={
        "no strings": _FOLLOWER_REPLY | {"token_strs": None},
        "no tokens": _FOLLOWER_REPLY | {"tokens": []},
        "null tokens": _FOLLOWER_REPLY | {"tokens": None},
    },
)


# Scoring.


def scored_context(*lengths: int) -> Context:
    """The recorded scoring prompt; its last tokens are cut into steps of these lengths."""
    return steps_at_the_end(SCORED_IDS, *lengths)


def prompt_rows() -> list[Any]:
    """The recorded entry of each prompt token."""
    rows: list[Any] = RECORDED.json("score_two_steps")["choices"][0]["prompt_logprobs"]
    return rows


def row_entropy(row: Any, top_k: int) -> float:
    """The entropy of an entry's best candidates."""
    return entropy_from(*[entry["logprob"] for entry in row.values() if entry["rank"] <= top_k])


def _step_score(start: int, end: int) -> StepScore:
    rows = prompt_rows()
    logprobs = [rows[i][str(SCORED_IDS[i])]["logprob"] for i in range(start, end)]
    return StepScore(geometric_mean(logprobs), row_entropy(rows[start], 20), end - start)


def _next_entropy() -> float:
    (top,) = RECORDED.json("score_two_steps")["choices"][0]["logprobs"]["top_logprobs"]
    return entropy_from(*top.values())


def with_choice(edit: contract.Edit) -> Any:
    """The recorded scores after an edit of their choice."""
    payload = RECORDED.json("score_two_steps")
    edit(payload["choices"][0])
    return payload


def _token_entry(choice: Any) -> Any:
    """The scored token's own entry at a position inside step 2."""
    return choice["prompt_logprobs"][50][str(SCORED_IDS[50])]


def _next_tops(choice: Any) -> Any:
    return choice["logprobs"]["top_logprobs"][0]


def _drop_a_candidate(choice: Any) -> None:
    row = choice["prompt_logprobs"][47]
    del row[next(key for key, entry in row.items() if entry["rank"] == 20)]


def _null_a_candidate(choice: Any) -> None:
    row = choice["prompt_logprobs"][47]
    next(entry for entry in row.values() if entry["rank"] == 20)["logprob"] = None


_BROKEN: dict[str, contract.Edit] = {
    "no prompt_logprobs": lambda c: c.update(prompt_logprobs=None),
    "prompt_logprobs not even named": lambda c: c.pop("prompt_logprobs"),
    "too few rows": lambda c: c["prompt_logprobs"].pop(),
    "too many rows": lambda c: c["prompt_logprobs"].append(c["prompt_logprobs"][-1]),
    "a null row": lambda c: c["prompt_logprobs"].__setitem__(50, None),
    "a row without its token": lambda c: c["prompt_logprobs"][50].pop(str(SCORED_IDS[50])),
    "a null log-probability": lambda c: _token_entry(c).update(logprob=None),
    "a positive log-probability": lambda c: _token_entry(c).update(logprob=0.5),
    "no log-probability": lambda c: _token_entry(c).pop("logprob"),
    "a log-probability that is text": lambda c: _token_entry(c).update(logprob="-1.0"),
    "a candidate too few": _drop_a_candidate,
    "a null candidate": _null_a_candidate,
    "no rank": lambda c: c["prompt_logprobs"][47][str(SCORED_IDS[47])].pop("rank"),
    "no generated log-probabilities": lambda c: c.update(logprobs=None),
    "no generated token": lambda c: c["logprobs"]["top_logprobs"].clear(),
    "a generated candidate too few": lambda c: _next_tops(c).popitem(),
    "a null generated candidate": lambda c: _next_tops(c).update(
        dict.fromkeys(_next_tops(c), None)
    ),
}


def _edited(edits: dict[str, contract.Edit]) -> dict[str, Callable[[], contract.Played]]:
    return contract.edited_answers(
        lambda: RECORDED.json("score_two_steps"), lambda payload: payload["choices"][0], edits
    )


def _with_literal(literal: bytes) -> contract.Played:
    logprob = orjson.dumps(_token_entry(RECORDED.json("score_two_steps")["choices"][0])["logprob"])
    body = RECORDED.body("score_two_steps")
    assert body.count(b'"logprob":' + logprob) == 1
    return json_reply(body.replace(logprob, literal))


def _token_context() -> Context:
    context = scored_context(NUM_STEP_1, NUM_STEP_2)
    context.texts[-1] = STEPS[1]
    return context


def _tokens() -> tuple[ScoredToken, ...]:
    rows = RECORDED.json("score_value_only")["choices"][0]["prompt_logprobs"][-NUM_STEP_2:]
    logprobs = [
        row[str(i)]["logprob"] for row, i in zip(rows, SCORED_IDS[-NUM_STEP_2:], strict=True)
    ]
    # "So", a blank and the begin of the rocket, more of it, the rest, " é", " ", "1", "2".
    ends = [2, 4, 4, 7, 10, 11, 12, 13]
    return tuple(map(ScoredToken, ends, logprobs))


SCORING: Final = contract.ScoringContract(
    path=COMPLETIONS,
    scorer=backend,
    context=lambda: scored_context(NUM_STEP_1, NUM_STEP_2),
    num_new=2,
    top_k=20,
    recorded=lambda: json_reply(RECORDED.body("score_two_steps")),
    steps=lambda: [_step_score(37, 47), _step_score(47, 55)],
    next_entropy=_next_entropy,
    num_cached=0,
    known_values=pytest.approx((0.41862113, 0.00387864), rel=1e-5),
    known_entropies=(pytest.approx(2.1678976, rel=1e-6),),
    of_last_step=lambda: json_reply(RECORDED.body("score_two_steps")),
    # vLLM writes -inf as -9999.
    impossible=_edited({"-9999": lambda choice: _token_entry(choice).update(logprob=-9999.0)}),
    broken=_edited(_BROKEN),
    with_literal=_with_literal,
    without_tokens=lambda: scored_context(10, 0),
    token_context=_token_context,
    token_answers=lambda up: up.on(
        "POST", COMPLETIONS, json_reply(RECORDED.body("score_value_only"))
    ),
    tokens=_tokens,
    token_requests=lambda: [
        {**NEUTRAL, "prompt": SCORED_IDS, "prompt_logprobs": 0, "max_tokens": 1}
    ],
    refusals=contract.error_answers(
        RECORDED,
        {
            (400, ContextExceeded): ("too_long",),
            (400, UpstreamRefused): ("top_k",),
            (404, UpstreamRefused): ("unknown_model", "wrong_path"),
            (500, UpstreamFailed): ("engine_dead",),
        },
    ),
)

SERVER: Final = contract.Server(kind="vllm", writing=WRITING, reading=READING, scoring=SCORING)
