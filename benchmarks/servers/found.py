"""Finds out what a running server is: its kind, its model, its version and its tokenizer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import aiohttp
import orjson

from benchmarks.processes import Pair, Served

Role = Literal["student", "teacher"]
_ANSWER_S: Final = 10.0
# The names by which servers sign their list of models, which are the kinds of upstreams, too.
_KINDS: Final = ("sglang", "vllm", "llamacpp")
_ABOUT: Final = {"sglang": "/server_info", "vllm": "/version", "llamacpp": "/props"}
_VERSION: Final = {"sglang": "version", "vllm": "version", "llamacpp": "build_info"}


class CannotMeasure(Exception):
    """The servers, or what was said about them, do not allow the measurement."""


@dataclass(frozen=True, slots=True)
class Found:
    """A server, with the tokenizer that it names, and its version."""

    served: Served
    version: str

    @property
    def described(self) -> str:
        """The server in words."""
        return f"{self.served.model} on {self.served.kind} {self.version}"


async def find(http: aiohttp.ClientSession, role: Role, url: str, model: str | None) -> Found:
    """Ask the server at `url` what it is. Raises `CannotMeasure` with what would be right."""
    base_url = url.rstrip("/").removesuffix("/v1")
    rows = _rows(role, base_url, await _get(http, role, base_url, "/v1/models"))
    row = _chosen(role, base_url, rows, model)
    kind = row.get("owned_by")
    if kind not in _KINDS:
        message = f"the {role}'s server {base_url} signs its list of models as {kind!r}"
        raise CannotMeasure(f"{message}; only {', '.join(_KINDS)} can be measured")
    about = await _get(http, role, base_url, _ABOUT[kind])
    tokenizer = {"sglang": about.get("tokenizer_path"), "vllm": row.get("root")}.get(kind)
    return Found(Served(base_url, kind, row["id"], tokenizer), str(about.get(_VERSION[kind])))


def loop_can_ask(pair: Pair[Served]) -> bool:
    """Return whether the published loop can ask both: llama.cpp has no prompt log-probabilities."""
    return "llamacpp" not in {pair.student.kind, pair.teacher.kind}


async def _get(
    http: aiohttp.ClientSession, role: Role, base_url: str, path: str
) -> Mapping[str, Any]:
    try:
        async with http.get(
            f"{base_url}{path}", timeout=aiohttp.ClientTimeout(_ANSWER_S)
        ) as response:
            status, content = response.status, await response.read()
    except (aiohttp.ClientError, TimeoutError) as error:
        reason = str(error) or type(error).__name__
        message = f"the {role}'s server '{base_url}' does not answer ({reason})"
        right = f"name its URL, such as http://127.0.0.1:30000 (--{role}-url)"
        raise CannotMeasure(f"{message}: {right}") from error
    if status != 200:
        raise CannotMeasure(f"the {role}'s server answers {base_url}{path} with {status}")
    try:
        parsed = orjson.loads(content)
    except orjson.JSONDecodeError:
        parsed = None
    if not isinstance(parsed, dict):
        raise CannotMeasure(f"{base_url}{path} answers no JSON object: it is no {role}'s server")
    return parsed


def _rows(role: Role, base_url: str, reply: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    listed = reply.get("data")
    rows = {
        row["id"]: row
        for row in (listed if isinstance(listed, list) else [])
        if isinstance(row, dict) and isinstance(row.get("id"), str)
    }
    if not rows:
        raise CannotMeasure(f"the {role}'s server {base_url} lists no models")
    return rows


def _chosen(
    role: Role, base_url: str, rows: Mapping[str, dict[str, Any]], model: str | None
) -> dict[str, Any]:
    """The row of `model`, or the only one."""
    served = ", ".join(rows)
    if model is None and len(rows) > 1:
        raise CannotMeasure(f"{base_url} serves {served}: name one of them (--{role}-model)")
    if model is None:
        return next(iter(rows.values()))
    if model not in rows:
        raise CannotMeasure(f"{base_url} serves {served}, not '{model}' (--{role}-model)")
    return rows[model]
