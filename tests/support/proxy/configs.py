"""Makes configuration files, whole and broken."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from proxy.config import Config, load_config
from proxy.errors import ConfigError
from tests.support.paths import ROOT

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
FILE: dict[str, Any] = {
    "upstreams": {
        "small": {"kind": "llamacpp", "base_url": "http://127.0.0.1:30012", "model": "s"},
        "large": {"kind": "vllm", "base_url": "http://127.0.0.1:30011/", "model": "l"},
    },
    "models": {"motab/pair": {"student": "small", "teacher": "large"}},
}
FULL = """
server: {host: 0.0.0.0, port: 8801, api_keys: ["${ONE}", "key-${TWO}-${ONE}"], max_concurrent: 9,
  max_body_bytes: 1024, max_n: 5, max_total_tokens: 4096, request_timeout_s: 1.5}
upstreams:
  small: {kind: embedded, model: "package:x", slots: 2, context_tokens: 512, max_concurrent: 3}
  large: {kind: vllm, base_url: "https://${HOST}:30011", model: Qwen/Qwen3-32B, tokenizer: org/t,
    api_key: "${ONE}", chat_template: "{{ messages }}", retries: {attempts: 1, total_s: 2.5},
    stall_timeout_s: 7, answer_timeout_s: 8.5}
models:
  motab/pair: {student: small, teacher: large, params: {base_threshold: 0.3, revise: "${TWO}"}}
"""


def changed(path: str, value: object) -> dict[str, Any]:
    """The file with another value at this path; keys are divided by blanks."""
    return with_value(FILE, path.split(), value)


def without(path: str) -> dict[str, Any]:
    found = deepcopy(FILE)
    *sections, key = path.split()
    section = found
    for name in sections:
        section = section[name]
    del section[key]
    return found


def loaded(content: object, tmp_path: Path) -> Config:
    return load_config(written(content, tmp_path / "motab.yaml"))


def complaint(content: object, tmp_path: Path) -> str:
    return complaint_of(load_config, written(content, tmp_path / "motab.yaml"), ConfigError)


def with_value(content: dict[str, Any], keys: list[str], value: object) -> dict[str, Any]:
    """A copy with another value at the end of this path of keys."""
    found = deepcopy(content)
    section = found
    for name in keys[:-1]:
        section = section.setdefault(name, {})
    section[keys[-1]] = value
    return found


def written(content: object, path: Path) -> Path:
    """The path of a file with `content`, which is text or anything that YAML can hold."""
    text = content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False)
    path.write_text(text, encoding="utf-8")
    return path


def complaint_of(load: Callable[[Path], object], path: Path, error: type[Exception]) -> str:
    """The error's sentence, without the file's name that it must begin with."""
    with pytest.raises(error) as caught:
        load(path)
    sentence = str(caught.value)
    start = f"{path}: "
    assert sentence.startswith(start)
    assert "\n" not in sentence
    return sentence.removeprefix(start)
