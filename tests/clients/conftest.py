"""The demo's tiny pair behind `motab serve`, which keeps records, for one tool at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.support.paths import ROOT
from tests.support.proxy.live import API_KEY, proxy

# Some tools put their own words before a question.
CONTEXT_TOKENS = 2048


@dataclass(frozen=True)
class Served:
    base_url: str
    records: Path


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    config = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text(encoding="utf-8"))
    records = tmp_path / "records.jsonl"
    config["server"] = {"api_keys": [API_KEY], "records": str(records)}
    for upstream in config["upstreams"].values():
        upstream["context_tokens"] = CONTEXT_TOKENS
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    with proxy(path) as base_url:
        yield Served(base_url, records)
