"""Tests that clients who leave at random moments leave nothing behind."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

import httpx
import psutil

from tests.chaos.campaign import Campaign
from tests.support.patience import PATIENCE_S
from tests.support.proxy.api import samples_of
from tests.support.proxy.toy_pair import Proxy, toys, write_config
from tests.support.toy_servers import Toy

SEATS = 24
AT_A_TIME = 32
"""More than there are seats: some leave while they are refused."""
MORE_MEMORY = 1.25


def request_for(draw: random.Random) -> dict[str, Any]:
    """Streams, whole answers, several choices, plain text, scores."""
    return {
        "model": "motab/pair",
        "messages": [{"role": "user", "content": f"Q{draw.randrange(50)}"}],
        "temperature": 0.8,
        "seed": draw.randrange(50),
        "stream": draw.random() < 0.5,
        "n": draw.choice([1, 1, 2, 4]),
    }


async def ask_and_leave(url: SplitResult, draw: random.Random) -> str:
    """Leave within the request, before the answer or within it, by an end or a reset."""
    body = json.dumps(request_for(draw)).encode()
    head = f"POST /v1/motab/chat/completions HTTP/1.1\r\nHost: {url.netloc}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    content = head.encode() + body
    way = draw.choice(["request", "waiting", "waiting", "answer", "answer", "answer"])
    if way == "request":
        content = content[: draw.randrange(1, len(content))]
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    writer.write(content)
    await writer.drain()
    if way == "waiting":
        await asyncio.sleep(draw.random() * 0.2)
    elif way == "answer":
        with suppress(TimeoutError, asyncio.IncompleteReadError):
            await asyncio.wait_for(reader.readexactly(draw.randint(1, 3000)), draw.random() * 2)
    if draw.random() < 0.5:
        writer.transport.abort()
    else:
        writer.close()
    return way


async def until_nothing_is_left(
    client: httpx.AsyncClient, servers: Iterable[Toy], process: psutil.Process
) -> None:
    """Wait until no trajectory runs, no request to a server is open, and the only connection is the
    test's own.
    """
    async with asyncio.timeout(PATIENCE_S):
        for toy in servers:
            await toy.idle.wait()
        while (await samples_of(client))["motab_active_trajectories",] or num_accepted(
            process, client
        ) > 1:
            pass
        assert not any(toy.num_open for toy in servers)


def num_accepted(process: psutil.Process, client: httpx.AsyncClient) -> int:
    """Connections from clients, the test's own included."""
    return sum(
        c.laddr.port == client.base_url.port and c.status != psutil.CONN_LISTEN
        for c in process.net_connections("tcp")
    )


async def test_clients_that_leave_leave_nothing_behind(campaign: Campaign, tmp_path: Path) -> None:
    path, server = tmp_path / "motab.yaml", {"max_concurrent": SEATS, "max_n": 4}
    async with toys() as servers, Proxy(write_config(path, servers, server=server)) as proxy:
        base_url = await proxy.start()
        url = urlsplit(base_url)
        (process,) = proxy.processes()
        rounds = campaign.rounds(0.2, disconnects=1300)

        async def leave(some: Iterator[random.Random]) -> None:
            for draw in some:
                campaign.done["disconnects"] += 1
                campaign.done[f"in {await ask_and_leave(url, draw)}"] += 1

        async def leave_together(some: Iterator[random.Random]) -> None:
            async with asyncio.TaskGroup() as group:
                for _ in range(AT_A_TIME):
                    group.create_task(leave(some))

        for toy in servers.values():
            toy.delay_s = 0.01
        async with httpx.AsyncClient(base_url=f"http://{url.netloc}", timeout=PATIENCE_S) as client:
            await leave_together(islice(rounds, campaign.scaled(400)))  # the memory has its size
            await until_nothing_is_left(client, servers.values(), process)
            memory = process.memory_info().rss
            await leave_together(rounds)
            await until_nothing_is_left(client, servers.values(), process)
            grown = process.memory_info().rss / memory
            campaign.done["% more memory"] = max(0, round((grown - 1) * 100))
            assert grown < MORE_MEMORY
            # Every seat is free: as many can be asked at once, and one more cannot.
            for toy in servers.values():
                toy.delay_s = 0.2
            draw = random.Random(campaign.seed)
            bodies = [{**request_for(draw), "n": 1} for _ in range(SEATS + 1)]
            asked = [client.post("/v1/chat/completions", json=body) for body in bodies]
            statuses = Counter([answer.status_code for answer in await asyncio.gather(*asked)])
            assert statuses == {200: SEATS, 429: 1}
        said = await proxy.kill()
    assert "Traceback" not in said
