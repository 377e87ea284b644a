"""Tests that nothing is lost or doubled when processes are killed at random moments."""

import asyncio
import random
import signal
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from synth_client.files.record_file import read_records
from tests.chaos.campaign import Campaign
from tests.support.patience import PATIENCE_S
from tests.support.proxy.toy_pair import Proxy, requests_to, toys, write_config
from tests.support.synth_client.runs import Process, decided, lines, write_questions
from tests.support.toy_servers import Toy
from trajectory_records.record import Record

NUM_ROWS, NUM_SAMPLES = 60, 2
KILLS_A_RUN = 8


async def kill_again_and_again(
    synth: Process,
    proxy: Proxy,
    servers: Mapping[str, Toy],
    draw: random.Random,
    done: Counter[str],
) -> None:
    """Kill the client, the proxy or one of its workers, then let the run end."""
    client = await synth.start()
    for _ in range(KILLS_A_RUN):
        await requests_to(servers["teacher"], draw.randint(1, 40))
        await asyncio.sleep(draw.random() * 0.02)
        workers = proxy.processes()[1:]
        victim = draw.choice(
            ["client", "client", "proxy", "worker"] if workers else ["client", "proxy"]
        )
        if victim == "client":
            client.kill()
            _, err = await client.communicate()
            if client.returncode != -signal.SIGKILL:  # it was done already
                assert client.returncode == 0, err.decode()
                return
            client = await synth.start()
        elif victim == "proxy":
            await proxy.kill()
            await proxy.start()
        else:
            draw.choice(workers).kill()
        done["kills"] += 1
        done[f"of a {victim}"] += 1
    _, err = await client.communicate()
    assert client.returncode == 0, err.decode()


def all_records(folder: Path) -> list[Record]:
    return [record for part in sorted(folder.glob("*.jsonl")) for record in read_records(part)]


@pytest.mark.parametrize("num_workers", [1, 2])
async def test_kills_lose_no_row_and_double_none(
    num_workers: int, campaign: Campaign, tmp_path: Path
) -> None:
    source = write_questions(tmp_path / "in.jsonl", NUM_ROWS)
    more = ("--n", str(NUM_SAMPLES), "--concurrency", "16")
    path, kept = tmp_path / "motab.yaml", tmp_path / "records"
    how = ("--workers", str(num_workers), "--records", str(kept / "served.jsonl"))
    async with toys() as servers, Proxy(write_config(path, servers), *how) as proxy:
        base_url = await proxy.start()
        whole = tmp_path / "whole.jsonl"
        await Process(base_url, source, whole, *more).ended(0)
        for toy in servers.values():
            toy.delay_s = 0.03
        for number, draw in enumerate(campaign.rounds(0.35, kills=50)):
            folder = tmp_path / f"run-{number}"
            folder.mkdir()
            synth = Process(base_url, source, folder / "out.jsonl", *more)
            await kill_again_and_again(synth, proxy, servers, draw, campaign.done)
            await synth.ended(0)  # it changes nothing where the run had ended
            for name in (".jsonl", ".failed.jsonl"):
                assert decided(folder / f"out{name}") == decided(tmp_path / f"whole{name}")
            found = lines(synth.output) + lines(folder / "out.failed.jsonl")
            assert Counter((line["id"], line["sample"]) for line in found) == Counter(
                (f"q{row}", sample) for row in range(NUM_ROWS) for sample in range(NUM_SAMPLES)
            )
            campaign.done["rows"] += len(found)
            check_served(all_records(kept), lines(synth.output))
        await proxy.kill()


def check_served(records: list[Record], kept: list[dict[str, Any]]) -> None:
    """Every answer that the client has is in the proxy's records, and no answer is there twice."""
    answers = Counter(record.response_id for record in records)
    assert max(answers.values()) == 1
    known = {(record.messages[-1].content, record.output) for record in records if record.messages}
    assert known >= {(line["messages"][-1]["content"], line["output"]) for line in kept}


async def ask_until_killed(base_url: str, draw: random.Random) -> list[str]:
    """The ids of the answers that a client has got when its server is gone."""
    found: list[str] = []
    async with httpx.AsyncClient(base_url=base_url, timeout=PATIENCE_S) as client:
        while True:
            message = {"role": "user", "content": f"Q{draw.randrange(1000)}"}
            body = {"model": "motab/pair", "messages": [message], "max_tokens": 40}
            try:
                answer = await client.post("/chat/completions", json=body)
            except httpx.TransportError:
                return found
            if answer.status_code == 200:
                text = answer.json()["choices"][0]["message"]["content"]
                if text.strip():  # an empty answer is not recorded
                    found.append(answer.json()["id"])


async def test_a_killed_server_has_recorded_each_answer_once(
    campaign: Campaign, tmp_path: Path
) -> None:
    got: list[str] = []
    kept = tmp_path / "records"
    async with toys() as servers:
        config = write_config(tmp_path / "motab.yaml", servers)
        for draw in campaign.rounds(0.2, kills=35):
            num_workers = str(draw.choice([1, 2]))
            records = str(kept / "served.jsonl")
            async with Proxy(config, "--workers", num_workers, "--records", records) as proxy:
                base_url = await proxy.start()
                asking = [
                    asyncio.create_task(ask_until_killed(base_url, random.Random(draw.random())))
                    for _ in range(16)
                ]
                await requests_to(servers["student"], draw.randint(20, 200))
                await asyncio.sleep(draw.random() * 0.02)
                await proxy.kill()
            for task in asking:
                got += await task
            campaign.done["kills"] += 1
            answers = Counter(record.response_id for record in all_records(kept))
            assert not set(got) - set(answers)
            assert max(answers.values(), default=1) == 1
            campaign.done["answers"] = len(got)
