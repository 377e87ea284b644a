"""Tests that no trajectory is changed by servers that answer three calls of ten wrongly."""

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.chaos.campaign import Campaign
from tests.chaos.faulty_toys import FaultyToy
from tests.support.patience import PATIENCE_S
from tests.support.proxy.toy_pair import Proxy, toys, write_config
from tests.support.synth_client.runs import decided_usage
from tests.support.toy_servers import Kind

SHARE = 0.3
NUM_QUESTIONS = 40
AT_A_TIME = 32
HONEST = {
    "upstream_failed",
    "upstream_unreachable",
    "upstream_interrupted",
    "upstream_malformed",
    "upstream_refused",
    "upstream_denied",
    "over_capacity",
    "deadline_exceeded",
}
"""Errors that say that an upstream is at fault."""


async def ask(client: httpx.AsyncClient, number: int) -> dict[str, Any]:
    body = {
        "model": "motab/pair",
        "messages": [{"role": "user", "content": f"Q{number}"}],
        "temperature": 0.8 * (number % 2),
        "seed": number,
        "motab": {"teacher_temperature": 0.8 * (number % 2)},
    }
    response = await client.post("/motab/chat/completions", json=body)
    found: dict[str, Any] = response.json()
    return found


def decided(answer: dict[str, Any]) -> Any:
    """An answer without what differs from run to run."""
    return answer["choices"], decided_usage(answer["usage"])


@pytest.mark.parametrize("kind", ["vllm", "sglang", "llamacpp"])
async def test_no_fault_changes_a_finished_trajectory(
    kind: Kind, campaign: Campaign, tmp_path: Path
) -> None:
    path = tmp_path / "motab.yaml"
    hasty: dict[str, Any] = {
        "stall_timeout_s": 1.5,
        "answer_timeout_s": 3,
        "retries": {"attempts": 6},
    }
    async with (
        toys(kind, FaultyToy) as servers,
        Proxy(write_config(path, servers, **hasty)) as proxy,
    ):
        base_url = await proxy.start()
        faulty = [toy for toy in servers.values() if isinstance(toy, FaultyToy)]
        assert len(faulty) == 2
        async with httpx.AsyncClient(base_url=base_url, timeout=PATIENCE_S) as client:
            calm = [await ask(client, number) for number in range(NUM_QUESTIONS)]
            assert sum("choices" in answer for answer in calm) > NUM_QUESTIONS / 2
            for toy in faulty:
                toy.share, toy.draw = SHARE, random.Random(campaign.seed)

            async def meet(rounds: Iterator[random.Random]) -> None:
                for draw in rounds:
                    number = draw.randrange(NUM_QUESTIONS)
                    answer = await ask(client, number)
                    if "choices" in answer:
                        assert "choices" in calm[number]
                        assert decided(answer) == decided(calm[number])
                        campaign.done["finished"] += 1
                    elif answer["error"] != calm[number].get("error"):
                        assert answer["error"]["code"] in HONEST
                        campaign.done["honest failures"] += 1

            rounds = campaign.rounds(0.2, finished=100)
            async with asyncio.TaskGroup() as group:
                for _ in range(AT_A_TIME):
                    group.create_task(meet(rounds))
            for toy in faulty:
                toy.share = 0.0
            async with asyncio.timeout(PATIENCE_S):
                for toy in faulty:
                    await toy.idle.wait()
            assert decided(await ask(client, 1)) == decided(calm[1])
        said = await proxy.kill()
    met = faulty[0].met + faulty[1].met
    campaign.done |= {"faults": met.total(), "kinds of faults": len(met)}
    assert "Traceback" not in said
    assert len(met) >= campaign.scaled(31)
