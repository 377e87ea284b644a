"""Runs `forward_pass.py` in an environment of its own (requirements/reference.in says why)."""

import json
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.support.paths import ROOT

REFERENCE_PYTHON = ROOT / ".venv-reference" / "bin" / "python"


@dataclass(frozen=True)
class Case:
    prompt: str
    steps: list[str]


def forward_pass(model: Path, cases: list[Case]) -> list[list[dict[str, Any]]]:
    """For every step of every case: value, entropy (nats) and token_ids."""
    done = subprocess.run(
        [REFERENCE_PYTHON, Path(__file__).with_name("forward_pass.py"), model],
        input=json.dumps([asdict(case) for case in cases]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results: list[list[dict[str, Any]]] = json.loads(done.stdout)
    return results
