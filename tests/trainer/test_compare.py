"""`motab compare` on the tiny pair: vLLM, the proxy, LLaMA-Factory and the evaluation; all real."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import orjson
import psutil
import pytest

from synth_client.files.record_file import read_records
from tests.support.paths import ROOT
from tests.support.patience import PATIENCE_S
from tests.support.proxy.configs import written
from trainer.compare.processes import free_port
from trainer.reproduce.plan import SHIPPED
from trainer.reproduce.servers import find_vllm
from trainer.reproduce.sets import Sets
from trainer.reproduce.task import RULE

MODELS = {name: SHIPPED / "sets" / name for name in ("student", "teacher")}
CPU = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
}


def questions(path: Path, num: int) -> str:
    rows = [
        {"id": one.id, "problem": one.text, "answer": one.answer}
        for one in Sets().problems(path.stem, num, "hard")
    ]
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return str(path)


def vllm(model: str, port: str) -> str:
    command = f"{find_vllm()} -m vllm.entrypoints.openai.api_server --dtype float32"
    return f"{command} --enforce-eager --max-model-len 512 --model {model} --port {port}"


def plan_in(folder: Path) -> Path:
    ports = {name: free_port() for name in ("student", "teacher", "proxy")}
    urls = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
    upstreams = {
        name: {"kind": "vllm", "base_url": urls[name], "model": str(path), "tokenizer": str(path)}
        for name, path in MODELS.items()
    }
    proxy: dict[str, Any] = {
        "server": {"host": "127.0.0.1", "port": ports["proxy"]},
        "upstreams": upstreams,
        "models": {"motab/tiny": {"student": "student", "teacher": "teacher"}},
    }
    config = written(proxy, folder / "proxy.yaml")
    servers = [
        {
            "command": vllm(str(path), str(ports[name])),
            "ready": f"{urls[name]}/health",
            "environment": CPU,
        }
        for name, path in MODELS.items()
    ]
    serve = f"{{python}} -m motab serve --config {config} --wait 600"
    servers.append({"command": serve, "ready": f"{urls['proxy']}/ready"})
    recipe = {
        "model": str(MODELS["student"]),
        "data": {"kind": "records", "path": "replaced"},
        "training": {
            "max_steps": 6,
            "batch_size": 8,
            "max_tokens": 256,
            "learning_rate": 1e-3,
            "save_every": 2,
            "keep": 1,
        },
        "hardware": {"kind": "cpu", "per_device": 8},
        "output": "replaced",
    }
    base_url = f"{urls['proxy']}/v1"
    asked = {"verify": RULE, "source": questions(folder / "seed-1.jsonl", 24)}
    test = {"verify": RULE, "source": questions(folder / "test.jsonl", 12), "samples": 2}
    plan = {
        "recipe": str(written(recipe, folder / "recipe.yaml")),
        "pair": {
            "base_url": base_url,
            "model": "motab/tiny",
            "servers": servers,
            "teacher": {"base_url": f"{urls['teacher']}/v1", "model": str(MODELS["teacher"])},
        },
        "questions": asked,
        "sampling": {"temperature": 1.0, "max_tokens": 128},
        "arms": {
            "sft": {"params": {"method": "teacher"}},
            "motab": {"params": {"method": "motab", "base_threshold": 0.9}},
        },
        "serve": {
            "command": vllm("{model}", "{port}"),
            "ready": "/health",
            "environment": CPU,
        },
        "benchmarks": {"sets": {**test, "temperature": 0.6, "max_tokens": 128}},
        "output": str(folder / "out"),
    }
    return written(plan, folder / "plan.yaml")


def start(plan: Path, log: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "motab", "compare", str(plan)]
    with log.open("ab") as file:
        return subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file)


@pytest.mark.timeout(3600)
def test_two_arms_are_compared_end_to_end_and_a_kill_loses_nothing(tmp_path: Path) -> None:
    plan, log, output = plan_in(tmp_path), tmp_path / "log", tmp_path / "out"
    first = start(plan, log)
    while not list(output.glob("train/*/training/model/checkpoint-*")):
        assert first.poll() is None, log.read_text()
        time.sleep(0.2)
    started = psutil.Process(first.pid).children(recursive=True)
    first.kill()
    first.wait()
    _, alive = psutil.wait_procs(started, timeout=PATIENCE_S)
    assert not alive
    kept = {path: path.read_bytes() for path in output.glob("data/*/records.jsonl")}
    assert len(kept) == 2

    assert start(plan, log).wait() == 0, log.read_text()
    assert {path: path.read_bytes() for path in kept} == kept
    made = [record for path in kept for record in read_records(path)]
    assert {record.method for record in made} == {"teacher", "motab"}
    found = orjson.loads((output / "comparison.json").read_bytes())
    assert [one["name"] for one in found["arms"]] == ["sft", "motab"]
    # The pair is far apart, whatever 24 samples say of each.
    assert found["pair"]["teacher"]["sets"]["1"] > 0.7
    assert found["pair"]["student"]["sets"]["1"] < 0.8
    assert "| motab |" in (output / "comparison.md").read_text()
    done = {path: path.stat().st_mtime_ns for path in output.glob("*/*/done.json")}
    assert start(plan, log).wait() == 0, log.read_text()
    assert {path: path.stat().st_mtime_ns for path in done} == done  # nothing was done again
