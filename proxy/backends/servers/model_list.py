"""Looks for a model in a server's list, for its owner there, and for its limits."""

import logging
from collections.abc import Mapping
from typing import Any

from proxy.backends.limits import ModelLimits
from proxy.backends.transport.http import UpstreamClient
from proxy.errors import MotabError, UpstreamRefused

_log = logging.getLogger(__name__)

_MODELS = "/v1/models"
# The servers' own fields: vLLM's and SGLang's; Together's, OpenRouter's and Fireworks'; Groq's;
# Mistral's and LM Studio's; llama.cpp's, under `meta`.
_CONTEXT = ("max_model_len", "context_length", "context_window", "max_context_length", "n_ctx")
_OUTPUT = ("max_completion_tokens", "max_output_tokens")


async def require_model(
    client: UpstreamClient, model: str, *other_names: str, no_adapters: bool = False
) -> None:
    """Raise `UpstreamRefused` unless the server serves `model`, or any `UpstreamError` of the call.

    Its list may have it under one of `other_names`. With `no_adapters` a model that has a parent
    does not count.
    """
    reply = await client.get(_MODELS)
    with client.expecting(_MODELS):
        served = [
            str(entry["id"])
            for entry in reply["data"]
            if not (no_adapters and entry.get("parent") is not None)
        ]
    if not {model, *other_names} & set(served):
        message = f"it serves {', '.join(served)}, not the configured model '{model}'"
        raise UpstreamRefused(client.upstream, message)


async def listed_limits(client: UpstreamClient, model: str, path: str = _MODELS) -> ModelLimits:
    """Return what the list says about `model`, an adapter's by its parent; nothing is required."""
    entries = await _entries(client, path)
    limits = ModelLimits()
    while (entry := entries.pop(model, None)) is not None:
        parts = [
            part for name in ("meta", "top_provider") if isinstance(part := entry.get(name), dict)
        ]
        for part in (entry, *parts):
            context, output = count_in(part, *_CONTEXT), count_in(part, *_OUTPUT)
            limits = limits.lower(ModelLimits(context, None, output))
        model = str(entry.get("parent"))
    return limits


async def listed_owner(client: UpstreamClient, model: str) -> str | None:
    """Return who owns `model` by the list, or all of the list; None if it does not say so."""
    entries = await _entries(client, _MODELS)
    listed = [entries[model]] if model in entries else entries.values()
    owners = {owner for row in listed if isinstance(owner := row.get("owned_by"), str)}
    return owners.pop() if len(owners) == 1 else None


async def _entries(client: UpstreamClient, path: str) -> dict[str, dict[str, Any]]:
    """The rows of a list of models, by the models' names; none from a server without the list."""
    reply = await asked(client, path)
    rows = reply.get("data") if isinstance(reply, dict) else None
    return {
        str(row.get("id")): row
        for row in (rows if isinstance(rows, list) else [])
        if isinstance(row, dict)
    }


async def slot_limits(client: UpstreamClient) -> ModelLimits:
    """Return what llama.cpp's own server says about each of its slots, and about its one model."""
    props = await asked(client, "/props")
    of_slot = props.get("default_generation_settings") if isinstance(props, dict) else None
    context = count_in(of_slot, "n_ctx") if isinstance(of_slot, dict) else None
    return ModelLimits(context, vocabulary=await listed_vocabulary(client))


async def listed_vocabulary(client: UpstreamClient) -> int | None:
    """Return how many tokens the model of a llama.cpp server has, if its list says so."""
    metas = [row.get("meta") for row in (await _entries(client, _MODELS)).values()]
    sizes = [count_in(meta, "n_vocab") for meta in metas if isinstance(meta, dict)]
    return sizes[0] if sizes else None


async def asked(client: UpstreamClient, path: str) -> Any:  # noqa: ANN401
    """Return the answer to GET `path`; None from a server that does not have it."""
    try:
        return await client.get(path)
    except MotabError as error:
        _log.debug("%s; its limits there are not known", error)
        return None


def count_in(part: Mapping[str, Any], *names: str) -> int | None:
    """Return the first of these fields that is a number of tokens; hosts fill some with 0."""
    for name in names:
        value = part.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None
