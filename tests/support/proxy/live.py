"""Runs llama.cpp servers with real models, and the proxy as a user starts it."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from motab.demo import DemoPair, demo_config
from proxy.backends.embedded.gguf_files import model_path
from proxy.backends.embedded.process import LISTENING
from tests.support.patience import PATIENCE_S

API_KEY = "test-key"


_BIN = Path(sys.executable).parent


def pretrained_server(name: str) -> AbstractContextManager[str]:
    """A server of the demo's pretrained student or teacher; gives its URL."""
    return llama_server(model_path(demo_config(DemoPair.PRETRAINED).upstreams[name].model))


@contextmanager
def llama_server(path: Path) -> Iterator[str]:
    """A llama.cpp server of our own for that GGUF file; gives its URL."""
    # Slots, context tokens of each, threads: the demo's.
    arguments = [str(path), "127.0.0.1", "0", "2", "2048", "1"]
    command = [sys.executable, "-m", "proxy.backends.embedded.process", *arguments]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        lines = (line for line in process.stdout if line.startswith(LISTENING))
        url = next(lines).removeprefix(LISTENING).strip()
        try:
            yield url
        finally:
            process.stdin.close()
            process.wait(PATIENCE_S)


@contextmanager
def proxy(config: Path, *options: str) -> Iterator[str]:
    """`motab serve` with that configuration on a free port; gives its base URL."""
    command = [str(_BIN / "motab"), "serve", "--config", str(config), "--port", "0", *options]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "400"}
    ) as process:
        assert process.stderr is not None
        try:
            yield _base_url(line_with(process.stderr, "serving"))
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE_S) == 0


def line_with(said: Iterable[str], word: str) -> str:
    """The first line with that word; what was said instead where it never comes."""
    others: list[str] = []
    for line in said:
        if word in line:
            return line
        others.append(line)
    raise AssertionError("".join(others))


def _base_url(line: str) -> str:
    found = re.search(r"http://\S+/v1", line)
    assert found, line
    return found[0]


@contextmanager
def client_that_is_killed(url: str, body: dict[str, Any]) -> Iterator[None]:
    """Sends the request and, if it streams, reads the first event; at the end it is gone.

    As when the process is killed: the socket goes away, nothing is said.
    """
    to = urlsplit(url)
    assert to.hostname is not None
    headers = {"authorization": f"Bearer {API_KEY}", "content-type": "application/json"}
    connection = HTTPConnection(to.hostname, to.port or 80, timeout=PATIENCE_S)
    connection.request("POST", to.path, json.dumps(body), headers)
    response = connection.getresponse() if body["stream"] else None
    try:
        if response is not None:
            assert response.status == 200
            line = response.readline()
            while line in {b": ping\n", b"\n"}:  # as long as a slow model has written nothing
                line = response.readline()
            assert line.startswith(b"data: ")
        yield
    finally:
        connection.close()
        if response is not None:
            response.close()


def write_config(path: Path, student_url: str, teacher_url: str, api_key: str = API_KEY) -> None:
    """The demo's pretrained pair on servers that run already."""
    demo = demo_config(DemoPair.PRETRAINED)
    upstreams = {
        name: {
            "kind": "llamacpp",
            "base_url": url,
            "model": name,
            "chat_template": demo.upstreams[name].chat_template,
        }
        for name, url in (("student", student_url), ("teacher", teacher_url))
    }
    config = {
        "server": {"api_keys": [api_key]},
        "upstreams": upstreams,
        "models": {"motab/demo": demo.models["motab/demo"].model_dump()},
    }
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
