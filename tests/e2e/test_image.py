"""The result of the Dockerfile's steps, carried out in a folder with a Python of its own."""

import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from proxy import __version__
from tests.support.dockerfile import Build, Stage, stages
from tests.support.paths import ROOT
from tests.support.patience import PATIENCE_S
from tests.support.proxy.live import line_with
from tests.support.proxy.llama_cpp import READY, llama_cpp

_PORT, _HEALTH_PORT = "8800", "8801"


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Build]:
    """The last stage's files, after every step of every stage."""
    folder = tmp_path_factory.mktemp("image")
    subprocess.run([sys.executable, "-m", "venv", folder / "base"], check=True)
    build = Build(folder, folder / "base" / "bin" / "python")
    for stage in stages():
        build.run(stage, ROOT)
    # What the last stage did not copy would not be in the image.
    shutil.rmtree(folder / "before")
    yield build
    shutil.rmtree(folder)  # hundreds of megabytes, which pytest would keep


@dataclass(frozen=True)
class Ports:
    """Free ones, in place of the image's."""

    api: str
    health: str


@pytest.fixture
def ports() -> Ports:
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("127.0.0.1", 0)) as two,
    ):
        return Ports(*(str(free.getsockname()[1]) for free in (one, two)))


def command(stage: Stage, name: str, image: Build, ports: Ports) -> list[str]:
    """The command that an engine would run, at other ports."""
    words = [image.inside(word) for word in stage.only(name).argv()]
    return [word.replace(_PORT, ports.api).replace(_HEALTH_PORT, ports.health) for word in words]


@pytest.fixture
def served(image: Build, ports: Ports) -> Iterator[Stage]:
    """The image's entry point in front of a server that answers what is asked at the start."""
    stage = stages()[-1]
    path = Path(image.inside("/etc/motab/config.yaml"))
    path.parent.mkdir(parents=True, exist_ok=True)
    with llama_cpp(lambda path: (200, READY[path])) as url:
        config = {
            "server": {"api_keys": ["${KEY}"]},
            "upstreams": {"only": {"kind": "llamacpp", "base_url": url, "model": "m"}},
            "models": {"pair": {"student": "only", "teacher": "only"}},
        }
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        with subprocess.Popen(
            command(stage, "ENTRYPOINT", image, ports),
            cwd=image.inside(stage.only("WORKDIR").value),
            env={**image.environment, "KEY": "secret", "COLUMNS": "400"},
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stderr is not None
            try:
                line_with(process.stderr, "serving pair")
                yield stage
            finally:
                process.terminate()
                assert process.wait(PATIENCE_S) == 0


def test_the_image_has_the_command_and_the_bundled_configurations(image: Build) -> None:
    assert image.check_run(["motab", "--version"]).stdout == f"motab {__version__}\n"
    listing = "from importlib.resources import files; print(*files('configs').iterdir(), sep='\\n')"
    shipped = {
        Path(line).name for line in image.check_run(["python", "-c", listing]).stdout.split()
    }
    assert {path.name for path in (ROOT / "configs").glob("*.yaml")} <= shipped


def test_the_image_has_neither_installers_nor_embedded_models(image: Build) -> None:
    listing = "from importlib.metadata import distributions as d; print(*(x.name for x in d()))"
    names = set(image.check_run(["python", "-c", listing]).stdout.split())
    assert "motab" in names
    assert not names & {"pip", "hatchling", "setuptools", "xllamacpp", "numpy", "pytest"}
    assert not names & {"litellm", "sympy", "math-verify"}


def test_the_health_check_passes_in_front_of_a_running_proxy(
    served: Stage, image: Build, ports: Ports
) -> None:
    image.check_run(command(served, "HEALTHCHECK", image, ports), timeout=PATIENCE_S)


def test_the_health_check_fails_where_nothing_serves(image: Build, ports: Ports) -> None:
    with pytest.raises(AssertionError, match="ConnectionRefusedError"):
        image.check_run(command(stages()[-1], "HEALTHCHECK", image, ports), timeout=PATIENCE_S)


def test_the_image_answers_only_those_who_have_a_key(served: Stage, ports: Ports) -> None:
    request = urllib.request.Request(f"http://127.0.0.1:{ports.api}/v1/models")
    with pytest.raises(urllib.error.HTTPError, match="401") as caught:
        urllib.request.urlopen(request, timeout=PATIENCE_S)
    caught.value.close()
    request.add_header("authorization", "Bearer secret")
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
        assert b'"pair"' in answer.read()
