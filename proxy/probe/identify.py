"""Asks a server at a URL what it is, which models it has and how many requests it runs at once."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from proxy.backends.base import Call
from proxy.backends.transport.calls import Timeouts
from proxy.backends.transport.http import UpstreamClient
from proxy.errors import (
    MotabError,
    StartError,
    UpstreamDenied,
    UpstreamError,
    UpstreamFailed,
    UpstreamUnreachable,
)
from proxy.near_names import did_you_mean
from proxy.secrets import without_userinfo

ServerKind = Literal["vllm", "sglang", "llamacpp", "openai", "litellm"]
_TIMEOUTS = Timeouts(answer_s=30, stall_s=30)
_POLL_S = 1.0
_MOST_SHOWN = 20
_MODELS = "/v1/models"
_CALL = Call("connect")


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """A server's own word on its start: the requests that it runs at once, None if it does not say
    so, and the flags that it should be started with.
    """

    slots: int | None = None
    advice: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Identity:
    """A server, and the one of its models that was asked for.

    `root` is what the model is called where it comes from, and `signed_by` whose server it says it
    is; None if the server does not say so.
    """

    kind: ServerKind
    model: str
    settings: ServerSettings = ServerSettings()
    root: str | None = None
    signed_by: str | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """A server to identify: its role in messages, its root, its key, and the model that is wanted.

    Without a `model` it must serve exactly one.
    """

    role: str
    url: str
    api_key: str | None = None
    model: str | None = None


async def identify(asked: Asked, wait_s: float = 0.0) -> Identity:
    """Ask the server what it is; one that does not answer, or is loading, is asked for `wait_s`.

    Raises `StartError` with what would be right.
    """
    async with _client(asked) as client:
        rows = await _rows(client, asked, wait_s)
        row = _chosen(asked, rows)
        model, root = str(row["id"]), row.get("root")
        signed_by = row.get("owned_by")
        kind, settings = await _kind(client, asked, model, signed_by)
        return Identity(
            kind,
            model,
            settings,
            root if isinstance(root, str) and root != model else None,
            signed_by if isinstance(signed_by, str) else None,
        )


async def settings_of(name: str, url: str, api_key: str | None) -> ServerSettings:
    """Return what the server at `url` says about its start."""
    async with _client(Asked(name, url, api_key)) as client:
        props = await _part(client, "/props")
        return _settings(props or await _part(client, "/server_info"))


def _client(asked: Asked) -> UpstreamClient:
    return UpstreamClient(
        asked.role, asked.url, asked.api_key, 4, lambda *_: None, timeouts=_TIMEOUTS
    )


async def _rows(client: UpstreamClient, asked: Asked, wait_s: float) -> list[Mapping[str, Any]]:
    """The server's list of models."""
    reply = await _list(client, asked, time.monotonic() + wait_s)
    rows = reply.get("data") if isinstance(reply, dict) else None
    rows = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    if not rows or not all(isinstance(row.get("id"), str) and row["id"] for row in rows):
        raise StartError(f"{_where(asked)} lists no models at {_MODELS}: is it a server of models?")
    return rows


async def _list(client: UpstreamClient, asked: Asked, deadline: float) -> Any:  # noqa: ANN401
    while True:
        try:
            return await client.get(_MODELS)
        except UpstreamError as error:
            if not error.retryable or time.monotonic() >= deadline:
                raise StartError(_no_list(asked, error)) from error
        await asyncio.sleep(_POLL_S)


def _no_list(asked: Asked, error: UpstreamError) -> str:
    where, reason = _where(asked), str(error).removeprefix(f"upstream '{asked.role}': ")
    if isinstance(error, UpstreamDenied):
        return f"{where} {_denied(asked)}: {reason}"
    if isinstance(error, UpstreamUnreachable):
        return f"{where}: {reason}; start it, or use --wait 300 if it is still starting"
    if isinstance(error, UpstreamFailed) and error.retryable:
        return f"{where}: {reason}; if it is still loading its model, use --wait 300"
    advice = f"give the root of a server that has {_MODELS} below it"
    return f"{where} is no server of models: {reason}; {advice}"


def _denied(asked: Asked) -> str:
    option = f"--{asked.role}-key-variable NAME"
    if asked.api_key is None:
        return f"wants a key: put it into an environment variable, and name that with {option}"
    return f"refuses the key in the variable of {option}"


def _where(asked: Asked) -> str:
    return f"the {asked.role}'s server {without_userinfo(asked.url)}"


def _chosen(asked: Asked, rows: list[Mapping[str, Any]]) -> Mapping[str, Any]:
    served = [str(row["id"]) for row in rows]
    if asked.model is None and len(rows) == 1:
        return rows[0]
    more = f" and {len(served) - _MOST_SHOWN} more" if len(served) > _MOST_SHOWN else ""
    names = ", ".join(served[:_MOST_SHOWN]) + more
    option = f"--{asked.role}-model"
    if asked.model is None:
        raise StartError(f"{_where(asked)} serves several models: choose with {option}: {names}")
    if asked.model not in served:
        meant = did_you_mean(asked.model, served)
        message = f"{_where(asked)} serves {names}, not '{asked.model}' ({option}){meant}"
        raise StartError(message)
    return rows[served.index(asked.model)]


async def _kind(
    client: UpstreamClient, asked: Asked, model: str, signed_by: object
) -> tuple[ServerKind, ServerSettings]:
    """Tell servers by what only theirs answer: who owns a model can be whatever was configured."""
    props = await _part(client, "/props")
    if "total_slots" in props:
        return "llamacpp", _settings(props)
    info = await _part(client, "/server_info")
    if "max_req_input_len" in info:
        return "sglang", _settings(info)
    text = {"model": model, "prompt": "a"}
    if signed_by == "sglang":  # a router hides what its servers are
        if "tokens" in await _part(client, "/v1/tokenize", text):
            return "sglang", ServerSettings()
    elif "max_model_len" in await _part(client, "/tokenize", text):
        return "vllm", ServerSettings()
    body = {"model": model, "prompt": "One, two,", "max_tokens": 1}
    try:
        reply = await client.post("/v1/completions", body, _CALL)
    except UpstreamDenied as error:
        reason = str(error).removeprefix(f"upstream '{asked.role}': ")
        raise StartError(f"{_where(asked)} {_denied(asked)}: {reason}") from error
    except MotabError:  # such as a chat API, which has no such route
        reply = None
    has_text = isinstance(reply, dict) and isinstance(reply.get("choices"), list)
    return ("openai" if has_text else "litellm"), ServerSettings()


async def _part(
    client: UpstreamClient, path: str, body: dict[str, Any] | None = None
) -> Mapping[str, Any]:
    """The answer of a route that only one kind of server has; empty from any other."""
    try:
        asking = client.get(path) if body is None else client.post(path, body, _CALL)
        reply = await asking
    except MotabError:
        return {}
    return reply if isinstance(reply, dict) else {}


def _settings(part: Mapping[str, Any]) -> ServerSettings:
    advice = []
    if part.get("incremental_streaming_output") is False:
        advice.append(
            "Each event of its streams repeats the whole text: start it with"
            " --incremental-streaming-output."
        )
    if part.get("disable_radix_cache") is True:
        advice.append("It has no prefix cache: start it without --disable-radix-cache.")
    return ServerSettings(_slots(part), tuple(advice))


def _slots(part: Mapping[str, Any]) -> int | None:
    """The requests that a server runs at once, by llama.cpp's `/props` or SGLang's info."""
    states = part.get("internal_states")
    first = states[0] if isinstance(states, list) and states else {}
    effective = first.get("effective_max_running_requests_per_dp") if first else None
    for num in (part.get("total_slots"), effective, part.get("max_running_requests")):
        if isinstance(num, int) and not isinstance(num, bool) and num > 0:
            return num
    return None
