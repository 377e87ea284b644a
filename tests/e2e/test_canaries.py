"""Looks for the configuration's secrets in all that leaves the processes, errors above all."""

import asyncio
import os
import sys
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.support.paths import ROOT
from tests.support.patience import PATIENCE_S
from tests.support.proxy.workers import Served, motab
from tests.support.replay import Answer, Replay, Reply, Seen, json_reply, stream_reply

CLIENT_KEY = "canary-client-53f1c0"
SERVER_KEY = "canary-operator-9b2e77"
USER, PASSWORD = "canary-user-1d4f", "canary-password-6a8c"
OTHER_KEY = "canary-environment-2e0b"
PATH_KEY = "canary0path0c41e7d"
CANARIES = (CLIENT_KEY, SERVER_KEY, USER, PASSWORD, OTHER_KEY, PATH_KEY)
ENVIRONMENT = {"OTHER_API_KEY": OTHER_KEY}
SORTS = {"route", "status", "outcome", "code", "kind", "method", "scoring", "version"}
NAMED = {"model", "upstream", "path", "replica"}
"""The labels of the metrics that come from the configuration."""
STATUSES = (400, 401, 402, 403, 404, 408, 413, 422, 429, 500, 502, 503)


def quoted(seen: Seen) -> str:
    """The words of a server that repeats what it was sent, and more than it should know."""
    return (
        f"{seen.path}: headers were {dict(seen.headers)}; {OTHER_KEY}; "
        f"http://{USER}:{PASSWORD}@gateway/x; "
        f"your key {SERVER_KEY[:-3]}... is {CLIENT_KEY!r}"
    )


def refuses(status: int) -> Answer:
    return lambda seen: json_reply({"error": {"message": quoted(seen)}}, status)


def kinds_of_faults() -> dict[str, Answer]:
    return {
        **{str(status): refuses(status) for status in STATUSES},
        "long": lambda seen: json_reply({"error": "x" * 480 + quoted(seen)}, 400),
        "plain text": lambda seen: Reply((quoted(seen).encode(),), status=500),
        "no JSON": lambda seen: Reply((quoted(seen).encode(),)),
        "wrong type": lambda seen: json_reply({"content": 1, "stop": quoted(seen), "tokens": 7}),
        "in a stream": lambda seen: stream_reply(event({"error": {"message": quoted(seen)}})),
        "wrong event": lambda seen: stream_reply(event({"content": [quoted(seen)], "stop": 3})),
        "no event": lambda seen: stream_reply(b"data: " + quoted(seen).encode() + b"\n\n"),
        "redirect": lambda seen: Reply((), 302, {"location": f"http://{USER}:{PASSWORD}@x/"}),
        "broken": lambda _: Reply((b"data: {",), drop_after=1),
    }


def answers_all(llama: Replay, answer: Answer) -> None:
    """Answer all that a request needs in this way."""
    for base in ("", f"/{PATH_KEY}"):
        for path in ("/completion", "/tokenize", "/apply-template"):
            llama.on("POST", base + path, answer)
        llama.on("GET", f"{base}/health", answer)


def starts(llama: Replay) -> None:
    """Answer what is asked at the start below the path, too."""
    llama.on("GET", f"/{PATH_KEY}/props", json_reply({"total_slots": 64}))
    llama.on("GET", f"/{PATH_KEY}/health", json_reply({"status": "ok"}))
    llama.on("POST", f"/{PATH_KEY}/tokenize", json_reply({"tokens": [7]}))
    llama.on("POST", f"/{PATH_KEY}/apply-template", json_reply({"prompt": "Q:"}))


def labels_of(metrics: str) -> dict[str, set[str]]:
    """The values of each label, but for the numbers of buckets."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            for name, value in sample.labels.items():
                found.setdefault(name, set()).add(value)
    return {name: values for name, values in found.items() if name != "le"}


def event(value: object) -> bytes:
    return b"data: " + httpx.Response(200, json=value).content + b"\n\n"


def leaked(text: str) -> list[str]:
    """The canaries of which half or more is there, in the clear or as Basic sends them."""
    sent = b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    return [c for c in (*CANARIES, sent) if c[: (len(c) + 1) // 2] in text]


async def asked(http: httpx.AsyncClient, served: Served, path: str, **body: object) -> str:
    """All of an answer that a client sees."""
    response = await http.post(f"{served.url}/v1/{path}", json=body)
    return f"{response.status_code} {dict(response.headers)} {response.text}"


async def ran(folder: Path, *arguments: str) -> str:
    """Return all that a command says."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "motab", *arguments),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **ENVIRONMENT, "MOTAB_API_KEY": CLIENT_KEY},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(PATIENCE_S):
        said, _ = await process.communicate()
    return said.decode()


def written(folder: Path) -> dict[str, str]:
    """Every file in a folder and below, but the configuration."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "motab.yaml"]
    return {path.name: path.read_bytes().decode(errors="replace") for path in files}


def upstreams(llama: Replay) -> Mapping[str, Any]:
    common = {"kind": "llamacpp", "model": "m", "retries": {"attempts": 1}}
    url = llama.client.base_url
    walled = url.replace("http://", f"http://{USER}:{PASSWORD}@")
    return {
        "keyed": {**common, "base_url": url, "api_key": SERVER_KEY},
        "walled": {**common, "base_url": f"{walled}/{PATH_KEY}"},
    }


async def test_no_secret_leaves_the_processes_with_any_kind_of_error(
    llama: Replay, tmp_path: Path
) -> None:
    config, said = upstreams(llama), []
    starts(llama)
    (tmp_path / "questions.jsonl").write_text('{"question": "1+1?", "answer": "2"}\n', "utf-8")
    async with (
        motab(
            llama,
            tmp_path,
            num=1,
            upstreams=config,
            environment=ENVIRONMENT,
            api_keys=[CLIENT_KEY],
        ) as served,
        httpx.AsyncClient(
            timeout=PATIENCE_S, headers={"authorization": f"Bearer {CLIENT_KEY}"}
        ) as http,
    ):
        url = f"{served.url}/v1"
        for name, answer in kinds_of_faults().items():
            answers_all(llama, answer)
            num_before = len(llama.seen)
            for model in ("student/keyed", "teacher/walled"):
                text = await asked(http, served, "completions", model=model, prompt=name)
                assert not text.startswith("200")
                said.append(text)
            messages = [{"role": "user", "content": name}]
            for stream in (False, True):
                chat = {"model": "pair", "messages": messages, "stream": stream}
                said.append(await asked(http, served, "motab/chat/completions", **chat))
            said.append((await http.get(f"{served.url}/ready")).text)
            sent = " ".join(str(dict(seen.headers)) for seen in llama.seen[num_before:])
            assert SERVER_KEY in sent
            assert b64encode(f"{USER}:{PASSWORD}".encode()).decode() in sent
        answers_all(llama, refuses(400))
        arguments = ("--model", "pair", "--base-url", url, "--output", "out.jsonl")
        said.append(await ran(tmp_path, "synth", "questions.jsonl", *arguments))
        said.append(await ran(tmp_path, "probe", "--config", "motab.yaml", "--json"))
        said.append(await ran(tmp_path, "probe", "--config", "motab.yaml"))
        async with httpx.AsyncClient(base_url=served.url) as stranger:
            unready = await stranger.get("/ready")
            assert unready.json()["upstreams"] == {"keyed": "failed", "walled": "failed"}
            metrics = await stranger.get("/metrics")
        labels = labels_of(metrics.text)
        assert labels.keys() <= SORTS | NAMED
        assert labels["upstream"] == {"keyed", "walled"}
        assert labels["model"] <= {"pair", "student/keyed", "teacher/walled"}
        assert labels["path"] <= {"/completion", "/tokenize", "/apply-template"}
        said += [unready.text, metrics.text]
        wrong = {"authorization": f"Bearer {CLIENT_KEY[:-2]}"}
        said.append((await http.get(f"{url}/models", headers=wrong)).text)
        lines = "".join(served.lines)
    files = written(tmp_path)
    assert any(name.startswith("out") for name in files)
    said += files.values()
    for text in (*said, lines):
        assert not leaked(text), text
    assert any("***" in text for text in said)
