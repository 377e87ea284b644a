"""Tests that a replica's death costs nothing: no trajectory, no text, and soon no balance."""

from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from synth_client.files.record_file import read_records
from tests.support.proxy.replica_run import client, endure_a_kill
from tests.support.proxy.toy_pair import PARAMS, Proxy
from tests.support.proxy.toy_process import ToyProcess
from tests.support.toy_servers import Kind

NUM = 200
NUM_AT_ONCE = 24
ROLES = ("student", "teacher")


def write_config(path: Path, kind: Kind, replicas: dict[str, list[ToyProcess]]) -> Path:
    template = "{% for message in messages %}{{ message.content }}{% endfor %}: "
    upstreams: dict[str, Any] = {
        role: {
            "kind": kind,
            "base_urls": [one.base_url for one in replicas[role]],
            "model": "toy",
            "chat_template": template,
            "reasoning": "none",
        }
        for role in ROLES
    }
    pair = {"student": "student", "teacher": "teacher", "params": PARAMS}
    config = {"upstreams": upstreams, "models": {"motab/pair": pair}}
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


@pytest.mark.parametrize("victim", ROLES)
@pytest.mark.parametrize("kind", ["vllm", "sglang"])
async def test_a_killed_replica_costs_no_trajectory_and_changes_no_text(
    kind: Kind, victim: str, tmp_path: Path
) -> None:
    kept = tmp_path / "served.jsonl"
    async with AsyncExitStack() as stack:
        replicas = {role: [ToyProcess(kind, role) for _ in range(2)] for role in ROLES}
        for one in (one for of_role in replicas.values() for one in of_role):
            await one.start()
            stack.push_async_callback(one.kill)
        config = write_config(tmp_path / "motab.yaml", kind, replicas)
        proxy = Proxy(config, "--records", str(kept))
        base_url = await proxy.start()
        stack.push_async_callback(proxy.kill)
        sampled = {"temperature": 0.8, "max_tokens": 40}
        async with client(base_url, NUM_AT_ONCE, **sampled) as calm:
            await calm.ask_all(iter(range(NUM)))
        async with client(base_url, NUM_AT_ONCE, **sampled) as asking:
            endured = await endure_a_kill(asking, victim, replicas[victim][1], NUM, down_s=1.0)
    assert endured.requests["upstream_unreachable"] > 0
    lost = calm.told.keys() - endured.told.keys()
    texts = {
        number: (one.text, one.breach)
        for number, one in endured.told.items()
        if (one.text, one.breach) != (calm.told[number].text, calm.told[number].breach)
    }
    assert (lost, texts) == (set(), {})
    assert {one.breach for one in calm.told.values()} > {None}  # teachers wrote, too
    ids = Counter(record.response_id for record in read_records(kept))
    assert max(ids.values()) == 1
    answered = {one.response_id for one in endured.told.values() if one.text.strip()}
    assert len(answered) > 0.9 * NUM
    assert answered <= set(ids)
    assert endured.even_after_s < 30
