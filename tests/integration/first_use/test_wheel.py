"""Tests the built wheel in an empty folder: a stranger's first commands need neither the repository
nor an extra.
"""

import json
import subprocess
import sys
import venv
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from proxy.config import load_config
from synth_client.files.record_file import read_records
from tests.support.paths import ROOT
from tests.support.patience import PATIENCE_S
from tests.support.proxy.live import pretrained_server


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel and the packages that it requires without any extra.

    The packages are links to this environment's, so nothing is downloaded.
    """
    built, environment = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("installed")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(built)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=PATIENCE_S)
    (file,) = built.glob("*.whl")
    venv.create(environment, symlinks=True)
    install = [sys.executable, "-m", "pip", "--python", str(environment / "bin" / "python")]
    subprocess.run(
        [*install, "install", "--no-deps", "--no-index", "--quiet", str(file)],
        check=True,
        capture_output=True,
        timeout=PATIENCE_S,
    )
    (installed,) = environment.glob("lib/python*/site-packages")
    (own,) = metadata.distributions(name="motab", path=[str(installed)])
    for name in required(own.requires or []):
        link(metadata.distribution(name), installed)
    return environment


def required(requirements: Sequence[str]) -> set[str]:
    """Return the names of all distributions that these requirements lead to."""
    found: dict[str, set[str]] = {}
    waiting = [(text, "") for text in requirements]
    while waiting:
        text, extra = waiting.pop()
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": extra}):
            continue
        known = found.setdefault(canonicalize_name(wanted.name), set())
        for new in {"", *wanted.extras} - known:
            known.add(new)
            waiting += [(one, new) for one in metadata.requires(wanted.name) or []]
    return set(found)


def link(distribution: metadata.Distribution, folder: Path) -> None:
    """Link what the distribution has in its own folder into another."""
    for name in {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
        target = folder / name
        if not target.exists():
            target.symlink_to(str(distribution.locate_file(name)))


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    folder = tmp_path / "empty"
    folder.mkdir()
    return folder


def run(wheel: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the installed command in that folder, without any extra's package."""
    return subprocess.run(
        [wheel / "bin" / "motab", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )


def motab(wheel: Path, folder: Path, *arguments: str, code: int = 0) -> str:
    """Return the output of the command, which must end with that code."""
    done = run(wheel, folder, *arguments)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_s_own_code_runs(wheel: Path, empty: Path) -> None:
    names = "motab, proxy, synth_client, trainer, trajectory_records, configs"
    of_an_extra = "import importlib.util as u; assert u.find_spec('ray') is None"
    script = f"import {names}; print([m.__file__ for m in ({names})]); {of_an_extra}"
    done = subprocess.run(
        [wheel / "bin" / "python", "-c", script],
        cwd=empty,
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(ROOT) not in done.stdout
    assert done.stdout.count(str(wheel)) == 6


def test_the_demo_runs(wheel: Path, empty: Path) -> None:
    # A user's own folder of that name is none of ours.
    (empty / "proxy").mkdir()
    (empty / "proxy" / "__init__.py").write_text("raise RuntimeError\n", encoding="utf-8")
    assert "2 trajectories" in motab(wheel, empty, "demo", "--limit", "2")
    assert len(list(read_records(empty / "runs" / "demo" / "records.jsonl"))) == 2
    assert (empty / "runs" / "demo" / "report.html").is_file()


def test_two_urls_become_a_configuration_and_the_doctor_tries_it(wheel: Path, empty: Path) -> None:
    path = empty / "motab.yaml"
    with pretrained_server("student") as student, pretrained_server("student") as teacher:
        said = motab(wheel, empty, "init", student, f"{teacher}/v1")
        assert "Next: motab doctor --config motab.yaml" in said
        config = load_config(path)
        assert [one.kind for one in config.upstreams.values()] == ["llamacpp", "llamacpp"]
        assert [one.max_concurrent for one in config.upstreams.values()] == [2, 2]
        ((name, model),) = config.models.items()
        assert model.params == {"max_total_tokens": 2048}
        short = path.read_text(encoding="utf-8").replace("tokens: 2048  #", "tokens: 48  #")
        path.write_text(short, encoding="utf-8")
        done = run(wheel, empty, "doctor", "--config", "motab.yaml", "--json")
    out = json.loads(done.stdout)
    assert list(out["models"]) == [name]
    trial, findings = out["models"][name]["trial"], out["models"][name]["findings"]
    assert trial["num_questions"] == 5
    assert trial["student_tokens"] > 0
    # All answers may be cut at 48 tokens, which is a fault.
    faults = [finding["text"] for finding in findings if finding["level"] == "fault"]
    assert (out["ok"], done.returncode) == ((False, 1) if faults else (True, 0)), done.stderr
    assert {"level": "ok", "text": "steps are scored by forced_decode"} in findings


def test_the_doctor_asks_a_user_s_own_questions(wheel: Path, empty: Path) -> None:
    (empty / "motab.yaml").write_bytes((ROOT / "configs" / "demo.yaml").read_bytes())
    questions = empty / "mine.jsonl"
    lines = (ROOT / "configs" / "demo_questions.jsonl").read_text(encoding="utf-8").splitlines()
    questions.write_text("\n".join(lines[:7]), encoding="utf-8")
    said = motab(wheel, empty, "doctor", "--config", "motab.yaml", "--questions", "mine.jsonl")
    assert said.startswith("motab/demo: healthy\n")
    assert "of 5 answers are right" in said
    assert "of 5 trajectories strayed" in said
    strict = (empty / "motab.yaml").read_text(encoding="utf-8")
    loose = strict.replace("base_threshold: 0.5", "base_threshold: 1")
    (empty / "motab.yaml").write_text(loose, encoding="utf-8")
    said = motab(wheel, empty, "doctor", "--config", "motab.yaml", "--questions", "mine.jsonl")
    assert "5 of 5 trajectories strayed, at base_threshold 1: with base_threshold 0." in said


def test_the_doctor_says_what_is_down(wheel: Path, empty: Path) -> None:
    content = {
        "upstreams": {"s": {"kind": "vllm", "base_url": "http://127.0.0.1:9", "model": "m"}},
        "models": {"pair": {"student": "s", "teacher": "s"}},
    }
    (empty / "motab.yaml").write_text(json.dumps(content), encoding="utf-8")
    said = motab(wheel, empty, "doctor", "--config", "motab.yaml", code=1)
    assert said.startswith("pair: not healthy\n")
    assert "fault:  it cannot work: student 's': not reachable: no connection to" in said
    motab(wheel, empty, "doctor", "--config", "motab.yaml", "--model", "piar", code=1)
