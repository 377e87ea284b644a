"""The images, built once, and containers of them in front of real llama.cpp servers on the host."""

import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.image.engine import Container, Times, build, container, make_base, megabytes, podman
from tests.image.machine import install_programs
from tests.support.paths import ROOT
from tests.support.patience import PATIENCE_S
from tests.support.proxy.live import pretrained_server, write_config

KEY = f"key-{secrets.token_hex(8)}"
HEALTH_PORT = 8801
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
_SECRET = "/etc/motab/api-key"
_TIMES = pytest.StashKey[Times]()
_SIZES = pytest.StashKey[dict[str, float]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_TIMES] = Times()
    config.stash[_SIZES] = {}


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    for stage, seconds in config.stash[_TIMES].stages.items():
        terminalreporter.write_line(f"{stage}: {seconds:.0f} s")
    for image, size in config.stash[_SIZES].items():
        terminalreporter.write_line(f"{image}: {size:.0f} MB")


@pytest.fixture(scope="session")
def times(pytestconfig: pytest.Config) -> Times:
    return pytestconfig.stash[_TIMES]


@pytest.fixture(scope="session")
def sizes(pytestconfig: pytest.Config) -> dict[str, float]:
    """The size of each image, in megabytes."""
    return pytestconfig.stash[_SIZES]


@pytest.fixture(scope="session")
def base(times: Times, sizes: dict[str, float]) -> str:
    with times.of("programs"):
        install_programs()
    name = make_base(times)
    sizes["base"] = megabytes(name)
    return name


@pytest.fixture(scope="session")
def image(base: str, times: Times, sizes: dict[str, float]) -> Iterator[str]:
    """The image of the Dockerfile, with its defaults."""
    with built("motab", base, times, sizes) as name:
        yield name


@pytest.fixture(scope="session")
def hosted_image(base: str, times: Times, sizes: dict[str, float]) -> Iterator[str]:
    """The image with litellm."""
    packages = "--build-arg=PACKAGES=serve-litellm"
    with built("motab-litellm", base, times, sizes, packages) as name:
        yield name


@contextmanager
def built(
    name: str, base: str, times: Times, sizes: dict[str, float], *options: str
) -> Iterator[str]:
    """Build an image, which is removed at the end."""
    tag = f"localhost/{name}"
    with times.of(f"image {name}"):
        build(tag, base, *options)
    sizes[name] = megabytes(tag)
    yield tag
    podman("rmi", "--force", tag)


@pytest.fixture(scope="session")
def student_url() -> Iterator[str]:
    with pretrained_server("student") as url:
        yield url


@pytest.fixture(scope="session")
def teacher_url() -> Iterator[str]:
    with pretrained_server("teacher") as url:
        yield url


@pytest.fixture(scope="session")
def config_file(
    student_url: str, teacher_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The pretrained pair; the clients' key is a variable."""
    path = tmp_path_factory.mktemp("config") / "motab.yaml"
    write_config(path, student_url, teacher_url, api_key="${MOTAB_API_KEY}")
    # The container's user is nobody of this machine.
    path.parent.chmod(0o755)
    path.chmod(0o644)
    return path


@dataclass(frozen=True)
class Served:
    """The proxy in a container."""

    container: Container
    port: int
    client: httpx.Client
    """With the right key."""


@contextmanager
def served(image: str, config_file: Path, health_port: int | None = None) -> Iterator[Served]:
    """The image as compose.yaml runs it, with the key in a secret file.

    The image's own health check needs its own port, which one container at a time can have.
    """
    ports = {"port": _free_port(), "health-port": health_port or _free_port()}
    secret = f"motab-{secrets.token_hex(8)}"
    file = config_file.with_name(secret)
    file.write_text(f"{KEY}\n", encoding="utf-8")
    podman("secret", "create", secret, str(file))
    service = COMPOSE["services"]["motab"]
    options = (
        "--network=host",
        f"--read-only={service['read_only']}",
        *(f"--tmpfs={folder}" for folder in service["tmpfs"]),
        *(f"--cap-drop={name}" for name in service["cap_drop"]),
        *(f"--security-opt={option}" for option in service["security_opt"]),
        # podman 4.3 cannot mount a secret at its usual place where the root is read-only.
        f"--secret={secret},target={_SECRET}",
        f"--env=MOTAB_API_KEY_FILE={_SECRET}",
        f"--volume={config_file}:/etc/motab/config.yaml:ro",
    )
    try:
        arguments = [f"--{name}={port}" for name, port in ports.items()]
        with container(image, options, arguments) as started:
            started.wait_for_line("serving")
            with httpx.Client(
                base_url=f"http://127.0.0.1:{ports['port']}",
                headers={"authorization": f"Bearer {KEY}"},
                timeout=PATIENCE_S,
            ) as client:
                yield Served(started, ports["port"], client)
    finally:
        podman("secret", "rm", secret)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port
