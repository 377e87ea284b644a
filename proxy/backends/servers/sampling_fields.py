"""Names each server's sampling fields, all of which are sent, also where they change nothing.

Servers fill a field that is left out from their own defaults or the model's
generation_config.json.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from proxy.backends.base import Sampling

SamplingFields = Callable[[Sampling], dict[str, Any]]


def openai_sampling(sampling: Sampling) -> dict[str, Any]:
    """The sampling fields of OpenAI's routes."""
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
    }


def vllm_sampling(sampling: Sampling) -> dict[str, Any]:
    """The sampling fields of vLLM's routes."""
    return {
        **openai_sampling(sampling),
        "top_k": max(sampling.top_k, 0),
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
    }


def sglang_sampling(sampling: Sampling) -> dict[str, Any]:
    """The sampling fields that all of SGLang's routes have."""
    top_k = sampling.top_k if sampling.top_k > 0 else -1  # 0 is refused
    return {**vllm_sampling(sampling), "top_k": top_k}


def llamacpp_sampling(sampling: Sampling) -> dict[str, Any]:
    """The sampling fields of llama.cpp's routes. Its own defaults are top-k 40, min-p 0.05 and
    others, and it can be started with more.
    """
    return {
        **openai_sampling(sampling),
        # The named samplers, in this order, as vLLM and SGLang apply them; no other is used.
        "samplers": ["penalties", "temperature", "top_k", "top_p", "min_p"],
        "mirostat": 0,  # it would replace them
        "dynatemp_range": 0.0,
        "top_k": max(sampling.top_k, 0),
        "min_p": sampling.min_p,
        "repeat_penalty": sampling.repetition_penalty,
    }


def _llamacpp_text_sampling(sampling: Sampling) -> dict[str, Any]:
    """The same for a text whose tokens are not known: penalties count over all of the window."""
    fields = llamacpp_sampling(sampling)
    return {**fields, "repeat_last_n": -1} if sampling.has_penalties else fields


OF_OWNERS: Final[Mapping[str, SamplingFields]] = {
    "vllm": vllm_sampling,
    "sglang": sglang_sampling,
    "llamacpp": _llamacpp_text_sampling,
}
"""The fields of OpenAI's routes on servers that sign their list of models by these names."""
