"""Describes SGLang to the contract."""

from collections.abc import Callable
from functools import partial
from typing import Any, Final

import pytest

from proxy.backends.base import Context, Sampling, ScoredToken, Segment
from proxy.backends.servers.sglang import SGLang
from proxy.backends.tokens.chat_template import ChatTemplate
from proxy.core.types import FinishReason, StepScore
from proxy.errors import ContextExceeded, UpstreamFailed, UpstreamRefused
from tests.support.replay import Recording, Replay, json_reply
from tests.support.scores import entropy_from, geometric_mean, steps_at_the_end
from tests.support.servers import contract

RECORDED: Final = Recording("sglang-0.5.23")
MODEL: Final = "smollm2"
FOLLOWER: Final = 81
GENERATE: Final = "/generate"
TOKENIZE: Final = "/v1/tokenize"
SCORED_IDS: list[int] = RECORDED.request("score_two_steps")["input_ids"]
NUM_PROMPT, NUM_STEP_1, NUM_STEP_2 = 4, 3, 2
NEXT_TOP: Final = (-2.0687239170074463, -2.2048380374908447, -2.372205972671509)
"""The candidates after the golden scoring prompt, copied from the payload."""
# An omitted one would be taken from the server's --preferred-sampling-params.
NEUTRAL: Final[dict[str, Any]] = {
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
    """The backend, with its own template or with the server's."""
    return SGLang(up.client, MODEL, None if template is None else ChatTemplate(template), FOLLOWER)


def models_with_adapter() -> Any:
    """The list of models, and the entry of an adapter as SGLang's source writes it."""
    listed = RECORDED.json("models")
    adapter = {"id": "adapter", "root": "/adapters/a", "parent": MODEL, "max_model_len": None}
    listed["data"].append(listed["data"][0] | adapter)
    return listed


# Writing.

STREAMS: Final[dict[str, tuple[tuple[str, ...], FinishReason]]] = {
    "length": (("So", " ", "", "🚀", " é", " ", "1", "2"), "length"),
    # An event of several tokens is split where the tokens' own strings spell its text.
    "length_interval4": (("So", "", "", "", " 🚀 é", " ", "1", "2"), "length"),
    "emoji_cut": (("So", " ", ""), "length"),
    "emoji_cut_interval4": (("So", "", " "), "length"),
    "eos": (("No", "."), "stop"),
    "eos_interval4": (("No", "."), "stop"),
    # The stop string's tokens were written, its text is cut off.
    "stop": ((" ", "1", "0", ",", " ", "1", "1", ",", " ", "", ""), "stop"),
    "stop_interval4": ((" ", "1", "0", ",", " ", "1", "1", ",", " ", "", ""), "stop"),
    "stop_not_reached": ((" ", "1", "0", ",", " ", "1"), "length"),
    "stop_not_reached_interval4": ((" ", "1", "0", ",", " ", "1"), "length"),
    "special": (("\n", "", "ass", "istant", "\n"), "length"),
    "special_interval4": (("\n", "", "", "", "assistant\n"), "length"),
}


def _token_logprobs(recorded: str) -> list[float]:
    rows: list[Any] = []
    for event in RECORDED.events(recorded):
        new = event["meta_info"]["output_token_logprobs"]
        rows = new if recorded.startswith("cumulative") else rows + new
    return [row[0] for row in rows]


def asked_for(recorded: str) -> contract.Asked:
    """The write that was recorded."""
    request = RECORDED.request(recorded)
    sampled = request["sampling_params"]
    stop, seed = tuple(sampled["stop"]), sampled.get("sampling_seed")
    sampling = Sampling(sampled["temperature"], sampled["top_p"], seed, stop)
    context = Context(Segment("", tuple(request["input_ids"])))
    return contract.Asked(context, sampling, sampled["max_new_tokens"])


def _stream(mode: str, name: str) -> contract.Stream:
    pieces, end = STREAMS[name]
    recorded = f"{mode}_{name}"
    return contract.Stream(
        body=RECORDED.body(recorded),
        asked=asked_for(recorded),
        text="".join(pieces),
        end=end,
        num_pieces=len(pieces),
        pieces=pieces,
        logprobs=tuple(_token_logprobs(recorded)[: len(pieces)]),
        request=RECORDED.request(recorded),
    )


def _resumable(recorded: str) -> contract.Resumable:
    rows = [event["meta_info"]["output_token_logprobs"] for event in RECORDED.events(recorded)]
    tokens = tuple((token, text) for row in rows for _, token, text in row)
    prompt = tuple(RECORDED.request(recorded)["input_ids"])
    return contract.Resumable(RECORDED.body(recorded), tokens, "special" in recorded, prompt)


ASKED: Final = contract.Asked(asked_for("delta_length").context)

WRITING: Final = contract.WritingContract(
    path=GENERATE,
    writer=contract.always(backend),
    asked=ASKED,
    # By default an event repeats all that came; with --incremental-streaming-output it does not.
    streams={
        f"{mode}_{name}": _stream(mode, name)
        for mode in ("cumulative", "delta")
        for name in STREAMS
    },
    cached={
        name: (RECORDED.body(name), (*[None] * 7, 53))
        for name in ("cumulative_length", "delta_length")
    },
    sent={
        "input_ids": ASKED.context.token_ids,
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
    },
    begun=contract.first_events(RECORDED.body("cumulative_length"), 2),
    first=("So",),
    breaks=contract.BREAKS | {"half an event": b'data: {"text'},
    failures={
        "too long": contract.Failure(RECORDED.body("stream_too_long"), ContextExceeded),
        "total": contract.Failure(RECORDED.body("stream_total"), ContextExceeded),
        "pool": contract.Failure(RECORDED.body("stream_pool"), ContextExceeded),
        "bad request": contract.Failure(RECORDED.body("stream_bad_request"), UpstreamRefused),
        "queue full": contract.Failure(RECORDED.body("stream_queue_full"), UpstreamFailed),
        "aborted": contract.Failure(RECORDED.body("stream_aborted"), UpstreamFailed),
        "aborted amid": contract.Failure(
            RECORDED.body("stream_aborted_amid"), UpstreamFailed, "Abort"
        ),
    },
    odd_events=contract.ODD_EVENTS
    | {
        "an error that is text": b'{"error": "text"}',
    },
    healthy=RECORDED.json("models"),
    resumable={
        f"delta_{name}": _resumable(f"delta_{name}")
        for name in ("length", "eos", "stop_not_reached", "special", "length_interval4")
    },
    prompt_and_limit=lambda body: (
        body["input_ids"],
        body["sampling_params"]["max_new_tokens"],
    ),
)


# Reading.

READING: Final = contract.ReadingContract(
    path=TOKENIZE,
    connect=lambda up: SGLang.connect(up.client, MODEL, None),
    connected=lambda up: up.on("POST", TOKENIZE, RECORDED.answering("tokenize_follower")),
    reader=backend,
    rendering=lambda up: up.on("POST", TOKENIZE, RECORDED.answering("render_chat")),
    rendered=Segment("", tuple(RECORDED.json("render_chat")["tokens"])),
    template=contract.TEMPLATE,
    templated=(contract.TEMPLATED, RECORDED.answering("render_prompt"), contract.PARIS),
    raw_prompt=RECORDED.answering("render_prompt"),
    markup_request={"model": MODEL, "prompt": "<|end|>", "add_special_tokens": False},
    encoding=RECORDED.answering("encode_steps"),
    encoded=(
        Segment("7+5 = 12.\n\n", (39, 27, 37, 446, 216, 33, 34, 30, 198, 198)),
        Segment("", ()),
        Segment("So 🚀 é 12", (2931, 15107, 244, 218, 26411, 216, 33, 34)),
        Segment("42", (36, 34)),
    ),
    special_text=RECORDED.answering("encode_special_text"),
    special_text_ids=(44, 108, 306, 79, 486, 108, 46, 198, 26843),
    no_text=None,
    unconnectable={
        "null": {"tokens": None},
        "nothing": {"tokens": []},
        "an empty text": {"tokens": [[], [81]]},
        "one text": {"tokens": [[81]]},
        "no lists": {"tokens": [198, 81]},
        "no numbers": {"tokens": [["a"], ["a"]]},
    },
)


# Scoring.


def scored_context(*lengths: int) -> Context:
    """The golden scoring prompt; its last tokens are cut into steps of these lengths."""
    return steps_at_the_end(SCORED_IDS, *lengths)


def with_meta(edit: contract.Edit) -> Any:
    """The golden scores after an edit of their meta_info."""
    payload = RECORDED.json("score_two_steps")
    edit(payload["meta_info"])
    return payload


def _from_step_2(meta: Any) -> None:
    rows, tops = meta["input_token_logprobs"], meta["input_top_logprobs"]
    rows[:4] = [[None, SCORED_IDS[6], None]]
    tops[:4] = [None]


def _edited(edits: dict[str, contract.Edit]) -> dict[str, Callable[[], contract.Played]]:
    return contract.edited_answers(
        lambda: RECORDED.json("score_two_steps"), lambda payload: payload["meta_info"], edits
    )


_BROKEN: dict[str, contract.Edit] = {
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


def set_value(logprob: float, meta: Any) -> None:
    """Give a token of the second step this log-probability."""
    meta["input_token_logprobs"][5][0] = logprob


LOWEST: Final = (-3.4028234663852886e38, -3.3895313892515355e38)
"""SGLang's numbers for the logarithm of 0: the lowest float32 and the lowest bfloat16."""


def _with_literal(literal: bytes) -> contract.Played:
    body = RECORDED.body("score_two_steps")
    own = b"[-7.7493896484375,"
    assert body.count(own) == 1
    return json_reply(body.replace(own, b"[" + literal + b","))


def token_context() -> Context:
    """The scoring prompt, its last step with its text."""
    context = scored_context(NUM_STEP_1, NUM_STEP_2)
    context.texts[-1] = "So2"
    return context


def token_answers(up: Replay, rows: list[Any]) -> None:
    """Script the entries from the token before the last step on."""
    meta = {**RECORDED.json("score_two_steps")["meta_info"], "input_token_logprobs": rows}
    up.on("POST", GENERATE, json_reply({"text": ".", "output_ids": [30], "meta_info": meta}))


SCORING: Final = contract.ScoringContract(
    path=GENERATE,
    scorer=backend,
    context=lambda: scored_context(NUM_STEP_1, NUM_STEP_2),
    num_new=2,
    top_k=3,
    recorded=lambda: json_reply(RECORDED.body("score_two_steps")),
    # Copied from the payload.
    steps=lambda: [
        StepScore(
            geometric_mean([-15.92572021484375, -6.160754203796387, -2.478268623352051]),
            entropy_from(-0.01218883041292429, -6.493481636047363, -7.0175371170043945),
            3,
        ),
        StepScore(
            geometric_mean([-7.503653049468994, -7.7493896484375]),
            entropy_from(-1.4253698587417603, -3.603973865509033, -3.607670307159424),
            2,
        ),
    ],
    next_entropy=lambda: entropy_from(*NEXT_TOP),
    num_cached=3,
    # From a forward pass of transformers in float32.
    known_values=pytest.approx((0.0002779004476, 0.000487353268), rel=1e-5),
    of_last_step=lambda: json_reply(with_meta(_from_step_2)),
    impossible=_edited({f"{lowest}": partial(set_value, lowest) for lowest in LOWEST}),
    broken=_edited(_BROKEN),
    with_literal=_with_literal,
    without_tokens=lambda: scored_context(5, 0),
    token_context=token_context,
    token_answers=lambda up: up.on("POST", GENERATE, json_reply(RECORDED.body("token_logprobs"))),
    tokens=lambda: (ScoredToken(2, -7.503658294677734), ScoredToken(3, -7.749377250671387)),
    token_requests=lambda: [RECORDED.request("token_logprobs")],
    refusals=contract.error_answers(
        RECORDED,
        {
            (400, ContextExceeded): ("too_long", "total", "pool"),
            (400, UpstreamRefused): ("bad_request", "contract", "validation"),
            (503, UpstreamFailed): ("queue_full",),
        },
    ),
)

SERVER: Final = contract.Server(kind="sglang", writing=WRITING, reading=READING, scoring=SCORING)
