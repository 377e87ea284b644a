"""Runs `motab probe` as a process."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.paths import ROOT

# Each model is loaded, and scores some 250 tokens one by one.
TIMEOUT_S = 600


def probe(config: Path, code: int) -> dict[str, Any]:
    """The command's output, which must be one JSON object and nothing else."""
    command = [sys.executable, "-m", "motab"]
    command += ["probe", "--config", str(config), "--json"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == code, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report
