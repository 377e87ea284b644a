"""Runs the server that docs/servers/scorer.md shows, and asks it what the page asks."""

import asyncio
import json
import re
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from proxy.backends.judges.http_scorer import HttpScorer
from proxy.backends.transport.http import UpstreamClient
from tests.support.paths import ROOT
from tests.support.patience import PATIENCE_S

PAGE = (ROOT / "docs" / "servers" / "scorer.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@asynccontextmanager
async def running() -> AsyncIterator[str]:
    """The page's server in a process of its own; gives its root."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    (program,) = blocks("python")
    assert program.count("9000") == 1
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program.replace("9000", str(port))),
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except ConnectionError:
                    assert process.returncode is None
                else:
                    writer.close()
                    break
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        await process.wait()


async def test_the_server_of_the_page_answers_as_the_page_says() -> None:
    question, answer = map(json.loads, blocks("json"))
    async with running() as root, httpx.AsyncClient() as client:
        response = await client.post(f"{root}/score_steps", json=question)
        assert response.json() == answer
        async with UpstreamClient("scorer", root, None, 2, lambda *_: None) as one:
            scorer = HttpScorer(one)
            await scorer.check()
            assert await scorer.prove() == (1.0, 0.5)
