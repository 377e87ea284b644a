"""Tests that no request made from `/openapi.json`, right or wrong, meets a 5xx or silence."""

import asyncio
import re
from pathlib import Path
from typing import Final

import httpx
import orjson
import pytest

from tests.chaos.campaign import Campaign
from tests.support.paths import ROOT
from tests.support.proxy.api import MODEL, over_http, samples_of, service_of, straying

SCHEMATHESIS: Final = ROOT / ".venv-schemathesis" / "bin" / "schemathesis"
# A trajectory of the scripted models takes milliseconds, so only a hang takes this long.
LATEST_S: Final = 60
# CPython 3.11 fails so where Hypothesis has it parse source code at some depths of recursion, in
# order to describe a strategy. It is no answer of the proxy's.
OWN_FAULT: Final = "SystemError: AST constructor recursion depth mismatch"


async def schema_with_models(client: httpx.AsyncClient) -> bytes:
    """The proxy's schema, with the names of its models where one is asked for: no other name would
    come past the first look.
    """
    schema = (await client.get("/openapi.json")).json()
    named = [
        part["properties"]
        for part in schema["components"]["schemas"].values()
        if "model" in part.get("properties", {})
    ]
    assert named
    for properties in named:
        properties["model"] = {"type": "string", "enum": [MODEL, "student/s", "teacher/t"]}
    return orjson.dumps(schema)


async def test_no_request_of_the_schema_or_beside_it_fails_the_proxy(
    campaign: Campaign, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with over_http(service_of(*straying())) as client:
        schema = tmp_path / "openapi.json"
        schema.write_bytes(await schema_with_models(client))
        for draw in campaign.rounds(0.15, cases=1638):
            command = [
                *(str(SCHEMATHESIS), "run", str(schema), "--url", str(client.base_url)),
                *("--checks", "not_a_server_error", "--request-timeout", str(LATEST_S)),
                *("--phases", "examples,coverage,fuzzing", "--continue-on-failure"),
                *("--max-examples", "50", "--seed", str(draw.randrange(2**31))),
                *("--suppress-health-check", "all", "--no-color", "--workers", "2"),
            ]
            process = await asyncio.create_subprocess_exec(
                *command, cwd=tmp_path, stdout=-1, stderr=-2
            )
            out, _ = await process.communicate()
            said = out.decode()
            found = re.search(r"(\d+) generated", said)
            assert found, said
            only_error = "Runtime Error: 1\n" in said and "= FAILURES =" not in said
            is_own_fault = OWN_FAULT in said and only_error
            assert process.returncode == 0 or is_own_fault, said
            campaign.done["cases"] += int(found[1])
        samples = await samples_of(client)
    campaign.done["trajectories"] = int(
        sum(n for (name, *_), n in samples.items() if name == "motab_trajectories_total")
    )
    assert campaign.done["trajectories"] > 0
    assert "Traceback" not in caplog.text
