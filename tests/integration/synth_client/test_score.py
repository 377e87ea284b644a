"""`motab score` against `motab serve`, with toy servers that score as vLLM does."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from synth_client.files.record_file import read_records
from tests.support.paths import ROOT
from tests.support.proxy.toy_pair import STUDENT, TEACHER, Proxy, toys, write_config
from tests.support.records import record_of, unbroken
from tests.support.synth_client.exports import written
from tests.support.synth_client.runs import ENV
from tests.support.toy_servers import Model, Toy
from trajectory_records.record import Record

OUTPUTS = ("So the sum is √27.\n\n", "So 🎉 the sum is 4.\n\nSo", "é")
MODEL = "motab/pair"


def record(number: int) -> Record:
    output = OUTPUTS[number % len(OUTPUTS)] + str(number)
    return record_of(
        unbroken(
            id=f"{number}",
            messages=[{"role": "user", "content": f"{number}?"}],
            output=output,
            spans=[{"role": "teacher", "start": 0, "end": len(output)}],
            steps=[],
        )
    )


def expected(model: Model, record: Record) -> dict[str, Any]:
    """Computed from the toy's own tables, one token after the other."""
    prompt = model.tokens(f"{record.question}: ")
    ids = model.tokens(record.output)
    logprobs = [model.logprob(prompt + ids[:i], ids[i]) for i in range(len(ids))]
    ends, spelt = [], b""
    for token in ids:
        spelt += model.vocabulary[token]
        ends.append(len(spelt.decode(errors="ignore")))
    return {"ends": tuple(ends), "logprobs": tuple(logprobs)}


def score_command(base_url: str, source: Path, output: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "motab", "score", str(source)),
        *("--output", str(output), "--base-url", base_url, "--model", MODEL, "--concurrency", "4"),
    ]


async def started(*command: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, env=ENV, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )


@asynccontextmanager
async def served(folder: Path) -> AsyncIterator[tuple[str, Toy]]:
    """The proxy's base URL, and the teacher's server."""
    path = folder / "motab.yaml"
    async with toys() as servers, Proxy(write_config(path, servers)) as proxy:
        yield await proxy.start(), servers["teacher"]


async def test_one_request_tells_both_models_tokens_of_a_text(tmp_path: Path) -> None:
    asked = record(1)
    async with served(tmp_path) as (base_url, _), httpx.AsyncClient(base_url=base_url) as client:
        body = {"model": MODEL, "messages": [{"role": "user", "content": asked.question}]}
        text = {"text": asked.output, "token_logprobs": True}
        answer = (await client.post("motab/score", json=body | text)).json()
        of_student = {"model": "student/student", "token_logprobs": True}
        alone = await client.post("motab/score", json=body | text | of_student)
        odd = await client.post("motab/score", json=body | text | {"motab": {"gamma": 0.5}})
        empty = await client.post("motab/score", json=body | text | {"text": ""})
    assert answer["object"] == "motab.token_logprobs"
    assert answer["scoring"] == {"student": "prompt_logprobs", "teacher": "prompt_logprobs"}
    for name, model in (("student", STUDENT), ("teacher", TEACHER)):
        wanted = expected(model, asked)
        told = answer["token_logprobs"][name]
        assert told["ends"] == list(wanted["ends"])
        assert told["logprobs"] == pytest.approx(wanted["logprobs"], abs=1e-12)
        assert answer["usage"]["motab"][f"{name}_scored_tokens"] == len(wanted["ends"])
    assert alone.status_code == 400
    assert "this one has no teacher" in alone.json()["error"]["message"]
    assert (odd.status_code, odd.json()["error"]["param"]) == (400, "motab.gamma")
    assert (empty.status_code, empty.json()["error"]["param"]) == (400, "text")


async def test_scoring_that_is_killed_goes_on_and_loses_nothing(tmp_path: Path) -> None:
    there = [record(number) for number in range(30)]
    source, output = written(tmp_path / "records.jsonl", there), tmp_path / "out.jsonl"
    async with served(tmp_path) as (base_url, teacher):
        command = score_command(base_url, source, output)
        teacher.delay_s = 0.1
        for _ in range(3):
            process = await started(*command)
            goal = teacher.num_requests.total() + 8
            while teacher.num_requests.total() < goal:
                teacher.came.clear()
                await teacher.came.wait()
            process.kill()
            await process.communicate()
            assert process.returncode == -signal.SIGKILL
            assert not output.exists()
        teacher.delay_s = 0.0
        process = await started(*command)
        said, err = await process.communicate()
        assert process.returncode == 0, err.decode()
    assert b"30 scored records" in said
    scored = list(read_records(output))
    assert [one.model_copy(update={"token_logprobs": None}) for one in scored] == there
    for one in scored:
        assert one.token_logprobs is not None
        assert one.token_logprobs.student.model_dump() == expected(STUDENT, one)
        assert one.token_logprobs.teacher.model_dump() == expected(TEACHER, one)
    assert not (tmp_path / "out.failed.jsonl").exists()


async def test_a_record_that_cannot_be_scored_goes_to_the_failed_file(tmp_path: Path) -> None:
    said = [{"role": "tool", "content": "!"}, {"role": "user", "content": "?"}]
    bad = record_of(record(0).model_dump() | {"id": "bad", "messages": said})
    source = written(tmp_path / "records.jsonl", [bad, record(1)])
    async with served(tmp_path) as (base_url, _):
        process = await started(*score_command(base_url, source, tmp_path / "out.jsonl"))
        _, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    assert [one.id for one in read_records(tmp_path / "out.jsonl")] == ["1"]
    failed = (tmp_path / "out.failed.jsonl").read_text()
    assert '"id":"bad"' in failed
    assert "messages[0].role" in failed
