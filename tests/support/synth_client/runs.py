"""Runs `motab synth`, in the test's event loop or as a process, and reads its files."""

import asyncio
import io
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson
import pytest
from rich.console import Console

from synth_client.asking.servers import Servers
from synth_client.errors import ClientError
from synth_client.files.record_file import read_records
from synth_client.questions.dataset import open_dataset
from synth_client.questions.question import Synthesis
from synth_client.runs.outputs import Totals
from synth_client.runs.synthesise import Run, synthesise
from tests.support.paths import ROOT
from tests.support.synth_client.openai_server import Scripted
from trajectory_records.record import Record

# What a user's terminal may set is taken out: a pipe has 80 columns, and no line may be cut there.
ENV = {k: v for k, v in os.environ.items() if k not in {"COLUMNS", "FORCE_COLOR", "TERM"}}


def write_questions(path: Path, number: int) -> Path:
    path.write_bytes(
        b"".join(
            orjson.dumps({"id": f"q{i}", "question": f"What is {i}?", "answer": str(i % 7)}) + b"\n"
            for i in range(number)
        )
    )
    return path


SYNTHESIS = Synthesis(model="motab/pair", seed=7)


async def run(
    server: Scripted,
    source: Path,
    output: Path,
    *,
    synthesis: Synthesis = SYNTHESIS,
    limit: int | None = None,
    concurrency: int = 64,
    **how: Any,
) -> Totals:
    """A run inside this event loop."""
    asked = Run(
        dataset=open_dataset(str(source), limit=limit),
        output=output,
        servers=Servers(base_urls=(server.base_url,), concurrency=concurrency),
        synthesis=synthesis,
        **{"verify": "number", **how},
    )
    return await synthesise(asked, Console(file=io.StringIO()))


async def failure(server: Scripted, source: Path, output: Path, **how: Any) -> str:
    """The message of a run that fails."""
    with pytest.raises(ClientError) as caught:
        await run(server, source, output, **how)
    return str(caught.value)


class Process:
    """`motab synth` as a process of its own."""

    def __init__(self, base_url: str, source: Path, output: Path, *more: str | Path) -> None:
        self.output = output
        self._arguments = [
            *(sys.executable, "-m", "motab", "synth"),
            *(str(source), "--output", str(output), "--base-url", base_url),
            *("--model", "motab/pair", "--seed", "7", "--verify", "number", *map(str, more)),
        ]

    async def start(self, **how: Any) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *self._arguments, cwd=ROOT, env=ENV, stdout=-1, stderr=-1, **how
        )

    def peak_memory(self) -> int:
        """Runs it to its end; the most memory that it had, in KiB."""
        with subprocess.Popen(self._arguments, cwd=ROOT, env=ENV, stdout=-3, stderr=-3) as process:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        return usage.ru_maxrss

    async def ended(self, code: int, **how: Any) -> str:
        """The output: on stdout after a success, on stderr after a failure."""
        process = await self.start(**how)
        out, err = await process.communicate()
        assert process.returncode == code, err.decode()
        return (err if code else out).decode()


def records(path: Path) -> list[Record]:
    return list(read_records(path))


def lines(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


def steady(path: Path) -> list[dict[str, Any]]:
    """The records without what differs from run to run."""
    return [{k: v for k, v in line.items() if k not in HOW_OBTAINED} for line in lines(path)]


HOW_OBTAINED = {"seconds", "attempts", "wasted"}
VARYING = {
    "student_tokens",
    "student_tokens_discarded",
    "teacher_scored_tokens",
    "teacher_cached_tokens",
    "score_calls",
}
"""The counts of `usage.motab` that the machine's speed decides: how far a student was beyond a
breach when its stream was closed, and how many steps shared a call.
"""


def decided(path: Path) -> list[dict[str, Any]]:
    """The records without what docs/synthesis.md says differs after kills."""
    return [
        {**line, "usage": decided_usage(line["usage"])} if "usage" in line else line
        for line in steady(path)  # a failure has no usage
    ]


def decided_usage(usage: dict[str, Any]) -> dict[str, Any]:
    """The usage without what differs from run to run."""
    cost = {name: count for name, count in usage["motab"].items() if name not in VARYING}
    return {**usage, "motab": cost}


def units(found: Iterable[Record]) -> list[tuple[str, int]]:
    return [(record.id, record.sample) for record in found]
