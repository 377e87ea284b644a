"""Drops fields that ask for nothing, and refuses fields that motab lacks with what to do instead.

Clients send whole sets of defaults. A field that motab lacks passes with null, with an empty value,
with the value that means "as if it were not there" to the server that defined it, and with any
value if it is only a label. The tables below name these; every other value is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from proxy.near_names import did_you_mean
from proxy.options import Options


@dataclass(frozen=True, slots=True)
class Foreign:
    """A field that motab lacks, and the values of it that ask for nothing."""

    no_ops: tuple[object, ...] = ()
    instead: str = ""
    """What to do in place of any other value."""
    is_label: bool = False
    """Whether the field changes no text, whatever its value."""
    same_as: str = ""
    """A field of the same object whose value asks for nothing here."""
    empty_asks: bool = False
    """Whether even an empty value asks for something."""

    def asks(self, value: object, others: Mapping[str, object]) -> bool:
        """Return whether this value, which is not null, asks for something."""
        if self.is_label or any(_is_same(value, no_op) for no_op in self.no_ops):
            return False
        if self.same_as and _is_same(value, others.get(self.same_as, 1)):
            return False
        return self.empty_asks or not (isinstance(value, str | list | dict) and not value)


class Unsupported(ValueError):
    """A field asks for something that motab does not do."""

    def __init__(self, field: str, instead: str) -> None:
        super().__init__(instead)
        self.field = field

    def about(self, path: str) -> str:
        """The sentence about the field at that path."""
        instead = str(self)
        return f"{path} is not supported" + (f": {instead}" if instead else "")


def accepted(
    sent: dict[str, Any], own: Mapping[str, Any], foreign: Mapping[str, Foreign]
) -> dict[str, Any]:
    """Return the fields of `sent` that are our `own`, without nulls.

    Raises `Unsupported` for the first other field, in the order of `foreign`, that asks for
    something.
    """
    if own.keys() >= sent.keys() and None not in sent.values():  # nearly always
        return sent
    given = {name: value for name, value in sent.items() if value is not None}
    others = [
        name
        for name, value in given.items()
        if name not in own and foreign.get(name, _UNKNOWN).asks(value, given)
    ]
    if others:
        name = next((name for name in foreign if name in others), others[0])
        raise Unsupported(name, foreign.get(name, _UNKNOWN).instead or _hint(name, own))
    return {name: value for name, value in given.items() if name in own}


def _is_same(value: object, no_op: object) -> bool:
    """Return whether both are equal; 0 is not False, because `logprobs: 0` asks for something."""
    return value == no_op and isinstance(value, bool) == isinstance(no_op, bool)


def _hint(name: str, own: Mapping[str, Any]) -> str:
    """The advice for a field that no table has."""
    if name in Options.__dataclass_fields__:
        return f"put it into the motab object, as in {{'motab': {{'{name}': ...}}}}"
    return did_you_mean(name, own).removeprefix("; ")


_UNKNOWN = Foreign()
_LABEL = Foreign(is_label=True)
_OFF = Foreign((False,))
_ON = Foreign((True,))
_ZERO = Foreign((0,))
_ONE = Foreign((1,))
_NO_TOOLS = (
    "motab calls no tools; say in the messages what the text must contain, or ask student/NAME or"
    " teacher/NAME, which pass the request on unless the model is a hosted one"
)
_NO_FORMAT = (
    "a correction may begin anywhere, so no format can be enforced; describe it in the messages and"
    " check the answer, or ask student/NAME or teacher/NAME, which pass the request on unless the"
    " model is a hosted one"
)
_NO_LOGPROBS = "POST /v1/motab/score with token_logprobs: true gives those of a finished text"
_THINKING = "send chat_template_kwargs, as in {'chat_template_kwargs': {'enable_thinking': false}}"
_ONLY_JSON = (
    "it is an argument of OpenAI's Python client, which sends its content; put motab at the top"
    " level of the body"
)

# In the order in which they are named if several ask for something.
OF_REQUESTS: Mapping[str, Foreign] = {
    "extra_body": Foreign(instead=_ONLY_JSON),
    "extra_headers": Foreign(instead="send the headers themselves"),
    "extra_query": Foreign(instead="the routes take no query"),
    # Tools and formats.
    "tools": Foreign(instead=_NO_TOOLS),
    "functions": Foreign(instead=_NO_TOOLS),
    "tool_choice": Foreign(("none", "auto"), _NO_TOOLS),
    "function_call": Foreign(("none", "auto"), _NO_TOOLS),
    "parallel_tool_calls": Foreign((True, False)),
    "web_search_options": Foreign(instead=_NO_TOOLS, empty_asks=True),
    "response_format": Foreign(({"type": "text"},), _NO_FORMAT),
    **dict.fromkeys(
        (
            "ebnf",
            "grammar",
            "guided_choice",
            "guided_grammar",
            "guided_json",
            "guided_regex",
            "json_schema",
            "regex",
            "structured_outputs",
        ),
        Foreign(instead=_NO_FORMAT),
    ),
    "text_format": Foreign(instead=_NO_FORMAT),
    "modalities": Foreign((["text"],), "motab writes text"),
    # What comes back.
    "logprobs": Foreign((False,), _NO_LOGPROBS),
    "top_logprobs": Foreign((0,), _NO_LOGPROBS),
    "n_probs": Foreign((0,), _NO_LOGPROBS),
    "prompt_logprobs": Foreign(instead=_NO_LOGPROBS),
    "echo": Foreign((False,), "join the prompt and the answer"),
    "best_of": Foreign((1,), "ask for n texts and choose among them", same_as="n"),
    "use_beam_search": Foreign((False,), "the models sample; ask for n texts"),
    "suffix": Foreign(instead="the text is continued at its end only"),
    "store": Foreign((False,), "motab stores no answers"),
    "include_reasoning": _ON,
    "separate_reasoning": Foreign((False, True)),
    "stream_reasoning": Foreign((False, True)),
    "reasoning_format": Foreign(("none", "auto")),
    **dict.fromkeys(
        (
            "background",
            "caching",
            "decoder_input_details",
            "details",
            "raw",
            "return_full_text",
            "return_hidden_states",
            "return_progress",
            "return_prompt_text",
            "return_routed_experts",
            "return_token_ids",
            "return_tokens",
            "return_tokens_as_token_ids",
            "timings_per_token",
        ),
        _OFF,
    ),
    "detokenize": _ON,
    "usage": Foreign(({"include": True}, {"include": False})),
    "truncation": Foreign(("disabled",)),
    "verbosity": Foreign(("medium",), "say in the messages how long the answer shall be"),
    # How tokens are chosen.
    "logit_bias": Foreign(instead="the two models have different tokens"),
    "frequency_penalty": _ZERO,
    "presence_penalty": _ZERO,
    "repetition_penalty": _ONE,
    "repeat_penalty": _ONE,
    "length_penalty": _ONE,
    "top_k": Foreign((-1, 0)),
    "top_a": _ZERO,
    "min_p": _ZERO,
    "typical_p": _ONE,
    "tfs_z": _ONE,
    "mirostat": _ZERO,
    "mirostat_mode": _ZERO,
    "smoothing_factor": _ZERO,
    "epsilon_cutoff": _ZERO,
    "eta_cutoff": _ZERO,
    "penalty_alpha": _ZERO,
    "no_repeat_ngram_size": _ZERO,
    "encoder_repetition_penalty": _ONE,
    "num_beams": _ONE,
    "early_stopping": _OFF,
    "xtc_probability": _ZERO,
    "dry_multiplier": _ZERO,
    "dynatemp_range": _ZERO,
    "do_sample": Foreign((True,), "temperature: 0 takes the most probable token"),
    **dict.fromkeys(("enable_thinking", "think", "thinking"), Foreign(instead=_THINKING)),
    # Where the text ends.
    "max_new_tokens": Foreign(instead="send max_tokens"),
    "n_predict": Foreign((-1,), "send max_tokens"),
    "min_tokens": _ZERO,
    "min_new_tokens": _ZERO,
    "ignore_eos": _OFF,
    "stop_token_ids": Foreign(instead="send stop, which takes strings"),
    "include_stop_str_in_output": _OFF,
    "no_stop_trim": _OFF,
    # How texts are read and written.
    "add_generation_prompt": _ON,
    "continue_final_message": _OFF,
    "skip_special_tokens": _ON,
    "spaces_between_special_tokens": _ON,
    "chat_template": Foreign(instead="it is a setting of the upstream in the configuration"),
    "input": Foreign(instead="send messages, or prompt to /v1/completions"),
    "cache_prompt": _ON,
    "id_slot": Foreign((-1,)),
    "num_retries": _ZERO,
    "priority": _ZERO,
    "watermark": _OFF,
    # Labels and billing.
    "service_tier": Foreign(("auto", "default"), "motab has one tier"),
    **dict.fromkeys(
        (
            "cache_salt",
            "metadata",
            "prompt_cache_key",
            "prompt_cache_retention",
            "request_id",
            "rid",
            "safety_identifier",
            "session_id",
            "tags",
            "trace_id",
            "user_id",
        ),
        _LABEL,
    ),
}
"""Fields of OpenAI's routes, and of the servers that extend them: vLLM, SGLang, llama.cpp, TGI and
OpenRouter."""

# Each route has its own default.
OF_CHAT: Mapping[str, Foreign] = {**OF_REQUESTS, "add_special_tokens": _OFF}
OF_COMPLETIONS: Mapping[str, Foreign] = {**OF_REQUESTS, "add_special_tokens": _ON}

OF_MESSAGES: Mapping[str, Foreign] = {
    "tool_calls": Foreign(instead=_NO_TOOLS),
    "function_call": Foreign(instead=_NO_TOOLS),
    "tool_call_id": Foreign(instead=_NO_TOOLS),
    "audio": Foreign(instead="motab reads text"),
    "images": Foreign(instead="motab reads text"),
    "refusal": Foreign(instead="send it as the content"),
    **dict.fromkeys(
        (
            "annotations",
            "cache_control",
            "id",
            "motab",
            "name",
            "provider_specific_fields",
            # Thoughts of earlier turns, in the formats of single providers.
            "reasoning_details",
            "thinking_blocks",
        ),
        _LABEL,
    ),
}
"""Fields of messages, among them those that SDKs add to answers, which come back as messages."""

OF_PARTS: Mapping[str, Foreign] = dict.fromkeys(("annotations", "cache_control", "id"), _LABEL)
"""Fields of a message's content parts."""

OF_STREAM_OPTIONS: Mapping[str, Foreign] = {"include_obfuscation": _OFF}
