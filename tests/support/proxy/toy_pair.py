"""Runs `motab serve` in front of two toy servers."""

import asyncio
import re
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.support.paths import ROOT
from tests.support.synth_client.runs import ENV
from tests.support.toy_servers import Model, Toy, toy_server

STUDENT = Model(["So", " the", " sum", " is", " √2", "7"], salt=1)


TEACHER = Model([" th", "e", "So", " su", "m", " 4"], salt=2)


PARAMS = {
    "base_threshold": 0.33,
    "entropy_scale": 0.05,
    "entropy_top_k": 3,
    "max_step_tokens": 25,
    "max_total_tokens": 40,
}


class Proxy:
    """`motab serve`, always on the same port."""

    def __init__(self, config: Path) -> None:
        self._config, self._port = config, "0"
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> str:
        """Its base URL, once it serves."""
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "motab", "serve"),
            *("--config", str(self._config), "--port", self._port),
            cwd=ROOT,
            env=ENV,
            stderr=asyncio.subprocess.PIPE,
        )
        assert self._process.stderr is not None
        said = ""
        while not (found := re.search(r"serving .* on (http://\S+:(\d+)/v1)", said)):
            line = await self._process.stderr.readline()
            assert line, said
            said += line.decode()
        self._port = found[2]
        return found[1]

    async def kill(self) -> None:
        """With -9; afterwards it is gone."""
        assert self._process is not None
        self._process.kill()
        await self._process.communicate()
        assert self._process.returncode == -signal.SIGKILL


@asynccontextmanager
async def toys() -> AsyncIterator[Mapping[str, Toy]]:
    """Both models' servers, which outlive whatever is killed."""
    async with toy_server("vllm", STUDENT) as student, toy_server("vllm", TEACHER) as teacher:
        yield {"student": student, "teacher": teacher}


def write_config(path: Path, servers: Mapping[str, Toy]) -> Path:
    template = "{% for message in messages %}{{ message.content }}{% endfor %}: "
    upstreams: dict[str, Any] = {
        name: {
            "kind": "vllm",
            "base_url": toy.base_url,
            "model": "toy",
            "chat_template": template,
            "reasoning": "none",
        }
        for name, toy in servers.items()
    }
    pair = {"student": "student", "teacher": "teacher", "params": PARAMS}
    config = {"upstreams": upstreams, "models": {"motab/pair": pair}}
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path
