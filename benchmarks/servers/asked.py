"""Asks for one text as a stream, of a server or of the proxy, and times its first piece."""

import time
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
import orjson

from benchmarks.servers.prompts import Prompt

_DATA: Final = b"data: "
_DONE: Final = b"[DONE]"


@dataclass(frozen=True, slots=True)
class Answer:
    """A text: its times in seconds, its tokens and, from the proxy, the trace and the usage."""

    seconds: float
    first_s: float
    """From the request to the first piece of text; to the end where there was no text."""
    num_tokens: int
    trace: Mapping[str, Any]
    usage: Mapping[str, int]
    num_prompt: int = 0
    """The tokens of the question as the teacher reads it; as the student does, if only it says."""
    num_shared: int = 0
    """The first of them, with which all questions begin."""
    num_events: int = 0
    """The events that brought text."""


async def ask(
    http: aiohttp.ClientSession,
    base_url: str,
    model: str,
    prompt: Prompt,
    max_tokens: int,
    motab: Mapping[str, Any] | None = None,
) -> Answer:
    """Ask the chat route, or that of raw prompts. Raises `RuntimeError` for an error's answer."""
    body: dict[str, Any] = {"model": model, "max_tokens": max_tokens, **prompt.field}
    body |= {"temperature": 0.0, "stream": True, "stream_options": {"include_usage": True}}
    if motab is not None:
        body["motab"] = motab
    url = f"{base_url}/v1/{'chat/' if 'messages' in prompt.field else ''}completions"
    # A server may close a connection that it has kept just as the next question comes.
    headers = {"content-type": "application/json", "connection": "close"}
    started = time.perf_counter()
    first_s: float | None = None
    usage: Mapping[str, Any] = {}
    trace: Mapping[str, Any] = {}
    num_events = 0
    async with http.post(url, data=orjson.dumps(body), headers=headers) as response:
        if not response.ok:
            content = await response.read()
            raise RuntimeError(f"{url} answered {response.status}: {content[:500]!r}")
        async for event in _events(response.content):
            if "error" in event:
                raise RuntimeError(f"{url} answered: {event['error']}")
            usage = event.get("usage") or usage
            for choice in event["choices"]:
                trace = choice.get("motab") or trace
                if not _has_text(choice):
                    continue
                num_events += 1
                if first_s is None:
                    first_s = time.perf_counter() - started
    seconds = time.perf_counter() - started
    if not usage:
        raise RuntimeError(f"{url}: the stream ended without its usage")
    own = {name: value or 0 for name, value in usage.get("motab", {}).items()}
    return Answer(
        seconds,
        seconds if first_s is None else first_s,
        usage["completion_tokens"],
        trace,
        own,
        prompt.num_teacher or usage["prompt_tokens"],
        prompt.num_shared,
        num_events,
    )


def _has_text(choice: Mapping[str, Any]) -> bool:
    delta = choice.get("delta") or {}
    return bool(choice.get("text") or delta.get("content") or delta.get("reasoning_content"))


async def _events(lines: AsyncIterable[bytes]) -> AsyncIterator[dict[str, Any]]:
    async for line in lines:
        data = line.removeprefix(_DATA).strip()
        if line.startswith(_DATA) and data != _DONE:
            yield orjson.loads(data)
