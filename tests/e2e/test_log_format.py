"""Tests the log of `motab serve --log-format json` as a program reads it."""

import asyncio
import json
import signal
from contextlib import AsyncExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.patience import PATIENCE_S
from tests.support.proxy.workers import REQUEST, Served, ask, clients, motab
from tests.support.replay import Replay, json_reply

KEY = "sk-canary-of-the-operator"
JSON = ("--log-format", "json")


def objects(served: Served) -> list[dict[str, Any]]:
    """Every line that was said; each must be an object with the fields that all have."""
    found = [json.loads(line) for line in served.lines]
    for said in found:
        assert datetime.fromisoformat(said["time"]).utcoffset() is not None
        assert {"level", "logger", "message"} <= said.keys()
    return found


def requests(served: Served, path: str) -> list[dict[str, Any]]:
    return [said for said in objects(served) if said.get("path") == path]


@pytest.mark.parametrize("num", [1, 2])
async def test_every_line_of_every_process_is_an_object(
    llama: Replay, tmp_path: Path, num: int
) -> None:
    async with motab(llama, tmp_path, *JSON, num=num) as served, AsyncExitStack() as stack:
        (client,) = await clients(stack, 1)
        headers = {"x-request-id": "req-1"}
        url = f"{served.url}/v1/completions"
        assert (await client.post(url, json=REQUEST, headers=headers)).status_code == 200
        assert (await client.get(f"{served.url}/not%1B%5B2Jhere?key={KEY}")).status_code == 404
        for worker in served.workers()[:1]:
            worker.kill()
            await served.until_said("serves again")
        served.process.send_signal(signal.SIGTERM)
        assert await served.ended() == 0
    (access,) = requests(served, "/v1/completions")
    assert (access["logger"], access["request_id"]) == ("motab.access", "req-1")
    assert (access["method"], access["status"]) == ("POST", 200)
    assert 0 < access["seconds"] < PATIENCE_S
    assert access.get("process", "") in ({"worker 1", "worker 2"} if num > 1 else {""})
    (unknown,) = requests(served, "/not\x1b[2Jhere")
    assert unknown["status"] == 404
    assert "canary" not in "".join(served.lines)
    assert any("draining" in said["message"] for said in objects(served))


async def test_lines_of_a_request_name_it_and_mask_the_keys(llama: Replay, tmp_path: Path) -> None:
    llama.on("POST", "/completion", json_reply({"error": {"message": f"bad {KEY}"}}, 200))
    upstream = {"base_url": llama.client.base_url, "model": "m", "api_key": KEY}
    quick = {"kind": "llamacpp", **upstream, "retries": {"attempts": 1}}
    async with motab(llama, tmp_path, *JSON, num=1, upstreams={"only": quick}) as served:
        async with httpx.AsyncClient(timeout=PATIENCE_S) as client:
            headers = {"x-request-id": f"{KEY}-{'y' * 10}"}
            url = f"{served.url}/v1/completions"
            answer = await client.post(url, json=REQUEST, headers=headers)
            assert answer.status_code >= 500
        await served.until_said("/v1/completions")
    (access,) = requests(served, "/v1/completions")
    assert access["status"] == answer.status_code
    assert access["request_id"].startswith("***")
    assert KEY not in "".join(served.lines)


async def test_a_server_that_cannot_start_says_why_in_an_object(
    llama: Replay, tmp_path: Path
) -> None:
    llama.on("GET", "/props", json_reply({"error": "CANNOT"}, 500))
    for num in (1, 2):
        async with motab(llama, tmp_path, *JSON, num=num, ready=False) as served:
            assert await served.ended() == 1
        last = objects(served)[-1]
        assert (last["level"], last["logger"]) == ("ERROR", "motab.cli")
        assert "upstream 'only'" in last["message"]


async def test_the_text_has_no_line_for_a_request(llama: Replay, tmp_path: Path) -> None:
    async with motab(llama, tmp_path, num=1) as served, AsyncExitStack() as stack:
        (client,) = await clients(stack, 1)
        assert await ask(client, served) == 200
        served.process.send_signal(signal.SIGTERM)
        assert await served.ended() == 0
        async with asyncio.timeout(PATIENCE_S):
            await served.until_said("draining")
    assert not any("/v1/completions" in line for line in served.lines)
