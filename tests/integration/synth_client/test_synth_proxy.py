"""`motab synth` against `motab serve`, both as processes of their own that are killed."""

import asyncio
import random
import re
import signal
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from tests.support.paths import ROOT
from tests.support.proxy.toy_pair import Proxy, requests_to, toys, write_config
from tests.support.synth_client.runs import (
    HOW_OBTAINED,
    VARYING,
    Process,
    decided,
    lines,
    write_questions,
)
from tests.support.toy_servers import Toy

NUM_CLIENT_KILLS, NUM_PROXY_KILLS = 20, 10


async def test_client_and_proxy_killed_again_and_again_end_with_an_undisturbed_runs_records(
    tmp_path: Path,
) -> None:
    source = write_questions(tmp_path / "in.jsonl", 200)
    path = tmp_path / "motab.yaml"
    async with toys() as servers, Proxy(write_config(path, servers)) as proxy:
        base_url = await proxy.start()
        more = ("--n", "2", "--concurrency", "16")
        whole = Process(base_url, source, tmp_path / "whole.jsonl", *more)
        await whole.ended(0)

        killed = Process(base_url, source, tmp_path / "out.jsonl", *more)
        await _kill_again_and_again(killed, proxy, servers)
        await proxy.kill()
    # The student that writes nothing at all makes a few failures, in both runs the same.
    for name in (".jsonl", ".failed.jsonl"):
        assert decided(tmp_path / f"out{name}") == decided(tmp_path / f"whole{name}")
    kept, failed = lines(killed.output), lines(tmp_path / "out.failed.jsonl")
    assert Counter((line["id"], line["sample"]) for line in kept + failed) == Counter(
        (f"q{row}", sample) for row in range(200) for sample in range(2)
    )
    assert {line["error"]["message"] for line in failed} == {
        "malformed answer: the output is empty"
    }
    assert 50 < sum(line["breach"] is not None for line in kept) < 350
    # Some outlived their proxy.
    assert max(line["attempts"] for line in kept) > 1


async def _kill_again_and_again(synth: Process, proxy: Proxy, servers: Mapping[str, Toy]) -> None:
    """Kill each at a random moment: after some requests to the teacher, from whatever runs then."""
    for toy in servers.values():
        toy.delay_s = 0.05
    draw = random.Random(1)
    victims = ["client"] * NUM_CLIENT_KILLS + ["proxy"] * NUM_PROXY_KILLS
    draw.shuffle(victims)
    victims.append("proxy")  # what it held is asked again by the client that ends the run
    client = await synth.start()
    for victim in victims:
        await requests_to(servers["teacher"], draw.randint(1, 60))
        for _ in range(draw.randrange(50)):
            await asyncio.sleep(0)
        if victim == "client":
            client.kill()
            _, err = await client.communicate()
            assert client.returncode == -signal.SIGKILL, err.decode()
            client = await synth.start()
        else:
            await proxy.kill()
            await proxy.start()
    assert not synth.output.exists()
    for toy in servers.values():
        toy.delay_s = 0.0
    _, err = await client.communicate()
    assert client.returncode == 0, err.decode()


def test_the_page_names_everything_that_differs_after_kills() -> None:
    page = (ROOT / "docs" / "synthesis.md").read_text(encoding="utf-8")
    section = page.partition("### What differs after kills")[2].partition("\n## ")[0]
    named = set(re.findall(r"`(\w+)`", section)) - {"usage"}
    assert named == HOW_OBTAINED | VARYING
