"""Probes fake vLLM servers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from proxy.config import Config, load_config
from proxy.probe.report import Report
from proxy.probe.run import probe
from tests.support.fake_vllm import MODEL, FakeVllm
from tests.support.replay import replay

LADDER = [
    "cached_logprobs",
    "prompt_logprobs",
    "echo",
    "forced_decode",
    "judge_logprob",
    "judge_sample",
]


def config_of(
    tmp_path: Path, urls: Mapping[str, str], models: Mapping[str, Any], **upstream: Any
) -> Config:
    upstreams = {
        name: {"kind": "vllm", "base_url": url, "model": MODEL, **upstream}
        for name, url in urls.items()
    }
    path = tmp_path / "motab.yaml"
    path.write_text(json.dumps({"upstreams": upstreams, "models": models}), encoding="utf-8")
    return load_config(path)


async def probed(
    tmp_path: Path,
    fake: FakeVllm,
    params: Mapping[str, Any] | None = None,
    *,
    limit_s: float = 20.0,
    **upstream: Any,
) -> Report:
    """The report on a healthy student and the given teacher, and on their pair."""
    async with replay() as student, replay() as teacher:
        FakeVllm().serve(student)
        fake.serve(teacher)
        urls = {"s": student.client.base_url, "t": teacher.client.base_url}
        models = {"pair": {"student": "s", "teacher": "t", "params": params or {}}}
        return await probe(config_of(tmp_path, urls, models, **upstream), limit_s=limit_s)


ALL = [
    "reachable",
    "model",
    "chat_template",
    "tokenizer",
    "writes",
    "streams",
    "stop_strings",
    "decode_logprobs",
    "available",
    "self_test",
    "top_k",
    "speed",
    "prefix_cache",
]
