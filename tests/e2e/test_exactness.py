"""The output is what the student wrote, byte for byte."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest
from aiohttp import web

from tests.support.patience import PATIENCE_S
from tests.support.proxy.live import API_KEY, proxy, write_config


class Tee:
    """Stands between the proxy and a server and keeps what the server streamed."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.streams: list[bytearray] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._forward)
        runner = web.AppRunner(app, handler_cancellation=True)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            host, port = runner.addresses[0][:2]
            yield f"http://{host}:{port}"
        finally:
            await runner.cleanup()

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        async with (
            aiohttp.ClientSession() as session,
            session.request(
                request.method,
                self._url + request.path,
                data=await request.read(),
                headers={"content-type": "application/json"},
            ) as reply,
        ):
            answer = web.StreamResponse(status=reply.status)
            answer.content_type = reply.content_type
            await answer.prepare(request)
            kept = bytearray()
            if reply.content_type == "text/event-stream":
                self.streams.append(kept)
            async for chunk in reply.content.iter_any():
                kept += chunk
                await answer.write(chunk)
            return answer


def text_of(stream: bytearray) -> str:
    lines = (line for line in stream.decode().splitlines() if line.startswith("data: "))
    return "".join(json.loads(line[6:])["content"] for line in lines)


@pytest.mark.parametrize("threshold", [0.0, 0.65, 1.0])
async def test_the_students_text_is_its_stream_byte_for_byte(
    threshold: float, student_url: str, teacher_url: str, tmp_path: Path
) -> None:
    student, teacher = Tee(student_url), Tee(teacher_url)
    question = "A cat has 4 legs. How many have 3 cats? \U0001f408"
    body = {
        "model": "motab/demo",
        "messages": [{"role": "user", "content": question}],
        "seed": 3,
        "temperature": 0.6,
        "max_tokens": 96,
        "motab": {"base_threshold": threshold},
    }
    async with student.running() as student_at, teacher.running() as teacher_at:
        path = tmp_path / "config.yaml"
        write_config(path, student_at, teacher_at)
        answer = await asyncio.to_thread(ask, path, body)
    (choice,) = answer["choices"]
    text, trace = choice["text"], choice["motab"]
    assert [span["start"] for span in trace["spans"]] == [
        0,
        *(span["end"] for span in trace["spans"][:-1]),
    ]
    assert trace["spans"][-1]["end"] == len(text)
    roles = {span["role"]: text[span["start"] : span["end"]] for span in trace["spans"]}
    own = roles.get("student", "") + roles.get("flawed", "")
    (streamed,) = (text_of(stream) for stream in student.streams)
    if trace["breach"] is None:
        assert own == streamed
    else:
        assert streamed.startswith(own)
        assert "".join(text[s["start"] : s["end"]] for s in trace["steps"]) == own
        (corrected,) = (text_of(stream) for stream in teacher.streams)
        assert roles["teacher"] == corrected


def ask(config: Path, body: dict[str, Any]) -> Any:
    return ask_with_metrics(config, body)[0]


def ask_with_metrics(config: Path, body: dict[str, Any]) -> tuple[Any, str]:
    """The answer, and what the proxy tells of itself after it."""
    with proxy(config) as base_url:
        headers = {"authorization": f"Bearer {API_KEY}"}
        url = f"{base_url}/motab/completions"
        reply = httpx.post(url, json=body, headers=headers, timeout=PATIENCE_S)
        assert reply.status_code == 200, reply.text
        return reply.json(), httpx.get(f"{base_url.removesuffix('/v1')}/metrics").text


async def test_a_student_that_has_to_wait_at_every_step_writes_the_same(
    student_url: str, teacher_url: str, tmp_path: Path
) -> None:
    asked: dict[int, tuple[Any, int]] = {}
    for limit in (1, 4096):
        student = Tee(student_url)
        body = {
            "model": "motab/demo",
            "messages": [{"role": "user", "content": "A cat has 4 legs. How many have 3 cats?"}],
            "temperature": 0,
            "max_tokens": 48,
            "motab": {"base_threshold": 0.0, "delimiter": " ", "max_lookahead_tokens": limit},
        }
        async with student.running() as student_at:
            path = tmp_path / "config.yaml"
            write_config(path, student_at, teacher_url)
            answer, metrics = await asyncio.to_thread(ask_with_metrics, path, body)
        assert ("motab_student_waits_total{" in metrics) == (limit == 1)
        asked[limit] = (answer["choices"][0], len(student.streams))
    (waiting, num_waiting), (free, num_free) = asked[1], asked[4096]
    assert waiting["text"] == free["text"]
    assert placed_steps(waiting) == placed_steps(free)
    assert num_free == 1
    assert num_waiting > 5, "it was never stopped"


def placed_steps(choice: Any) -> list[tuple[int, int, int]]:
    return [(s["start"], s["end"], s["student_tokens"]) for s in choice["motab"]["steps"]]
