"""`make bench-servers` on the tiny pair, on a real SGLang: every figure, and their files."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.servers.real import Real
from tests.support.paths import ROOT

TIMEOUT_S = 600
LEVELS = (1, 4)


@pytest.fixture(scope="module")
def results(servers: dict[str, Real], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the results."""
    folder: Path = tmp_path_factory.mktemp("bench")
    command = [sys.executable, "-m", "benchmarks.servers", "--output", str(folder)]
    for role in ("student", "teacher"):
        command += [f"--{role}-url", servers[role].base_url]
    for level in LEVELS:
        command += ["--level", str(level)]
    command += ["--max-tokens", "120", "--base-threshold", "0.9"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def figures(results: Path) -> dict[str, dict[str, Any]]:
    scenarios = orjson.loads((results / "bench.json").read_bytes())["scenarios"]
    return {figure["name"]: figure for one in scenarios.values() for figure in one["figures"]}


@pytest.mark.parametrize("level", LEVELS)
def test_each_level_has_all_figures(figures: dict[str, dict[str, Any]], level: int) -> None:
    own = {name: one["value"] for name, one in figures.items() if name.startswith(f"{level} at")}
    assert len(own) == 10
    assert own[f"{level} at once: plain student"] > 0
    assert own[f"{level} at once: motab / published loop, tokens a second"] > 0
    assert 0 < own[f"{level} at once: scoring calls per step"] <= 1
    waste = figures[f"{level} at once: student tokens wasted / kept, with breaches"]
    assert not waste["detail"].endswith(" 0 breaches in 4 texts")


def test_the_teacher_computes_a_text_about_once(figures: dict[str, dict[str, Any]]) -> None:
    computed = figures["1 at once: teacher tokens computed / length"]
    # The question's tokens are computed, too: 20 of a text of 60.
    assert 1.0 <= computed["value"] < 2.0
    assert computed["detail"].startswith("published loop: ")


def test_the_probes_report_and_the_page_are_kept(results: Path) -> None:
    assert orjson.loads((results / "probe.json").read_bytes())["models"]["pair"]["ok"]
    page = (results / "bench.html").read_text("utf-8")
    assert all(title in page for title in ("Throughput", "Cost of scoring"))
