"""Builds images and runs containers with podman, whose storage is a folder of the repository."""

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from tests.image.machine import mounts_for_pip
from tests.support.paths import ROOT
from tests.support.patience import PATIENCE_S

FOLDER: Final = ROOT / ".container"
"""`make clean` removes it."""
_BASE: Final = "localhost/motab-base"
_BASE_FILE: Final = FOLDER / "base.tar"
_BASE_PACKAGES: Final = ("usr-is-merged", "python3", "python3-venv", "python3-pip")
# As in Debian's own slim images.
_UNWANTED: Final = ("/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/man/*")
_HOOKS: Final = (
    'ln -s python3 "$1/usr/bin/python"',
    'rm "$1"/usr/lib/python3*/EXTERNALLY-MANAGED',
)
_OPTIONS: Final = (
    f"--root={FOLDER / 'store'}",
    f"--runroot={FOLDER / 'run'}",
    "--cgroup-manager=cgroupfs",
    "--events-backend=file",
    "--runtime=runc",
)
# Below what any machine allows; podman would ask for more than it has itself.
_LIMITS: Final = ("--ulimit=nofile=4096:4096", "--ulimit=nproc=4096:4096")
_BUILDING_S: Final = 1800


@dataclass
class Times:
    """The seconds that each stage took, for the summary."""

    stages: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def of(self, stage: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.stages[stage] = time.monotonic() - began


def podman(*words: str, timeout_s: float = PATIENCE_S) -> str:
    """Run a command of podman's; returns its output. Raises with what it wrote if it fails."""
    done = subprocess.run(
        ["podman", *_OPTIONS, *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=timeout_s,
    )
    if done.returncode:
        raise AssertionError(f"podman {' '.join(words)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def make_base(times: Times) -> str:
    """Make the base image, Debian bookworm with Python; its file is kept until `make clean`."""
    FOLDER.mkdir(exist_ok=True)
    if not _BASE_FILE.exists():
        partial = FOLDER / "base.partial.tar"
        command = [
            "mmdebstrap",
            "--quiet",
            "--mode=root",
            "--variant=minbase",
            f"--include={','.join((*_BASE_PACKAGES, 'ca-certificates'))}",
            "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr",
            "--dpkgopt=force-unsafe-io",
            *(f"--dpkgopt=path-exclude={pattern}" for pattern in _UNWANTED),
            *(f"--customize-hook={hook}" for hook in _HOOKS),
            "bookworm",
            str(partial),
        ]
        with times.of("file system of the base"):
            subprocess.run(command, check=True, timeout=_BUILDING_S)
        partial.rename(_BASE_FILE)
    with times.of("import of the base"):
        podman("import", "--quiet", str(_BASE_FILE), _BASE)
    return _BASE


def build(name: str, base: str, *options: str) -> None:
    """Build the Dockerfile on the base."""
    mounts = [f"--volume={mount}" for mount in mounts_for_pip(FOLDER)]
    podman(
        "build",
        "--quiet",
        "--isolation=chroot",
        "--network=host",
        "--format=docker",  # the other has no health check
        "--layers=false",
        f"--build-arg=BASE={base}",
        *mounts,
        *options,
        f"--tag={name}",
        ".",
        timeout_s=_BUILDING_S,
    )


def megabytes(image: str) -> float:
    """The size of an image with all its layers."""
    return int(podman("image", "inspect", "--format={{.Size}}", image)) / 1e6


@dataclass(frozen=True)
class Container:
    """A container, running or stopped."""

    name: str

    def log(self) -> str:
        """Everything that it wrote."""
        done = subprocess.run(
            ["podman", *_OPTIONS, "logs", self.name],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=True,
        )
        return done.stdout

    def wait_for_line(self, word: str) -> None:
        """Wait until it writes that word. Raises with what it wrote if it ends before."""

        def has_come() -> bool:
            is_over = not self.state()["Running"]
            log = self.log()
            assert word in log or not is_over, log
            return word in log

        self.wait_until(has_come)

    def wait_until(self, holds: Callable[[], bool]) -> None:
        """Wait until something holds. Raises with what the container wrote if it never does."""
        deadline = time.monotonic() + PATIENCE_S
        while not holds():
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.1)

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(podman("inspect", "--format={{json .State}}", self.name))
        return found

    def is_healthy(self) -> bool:
        """Run the image's own health check in it once."""
        command = ["podman", *_OPTIONS, "healthcheck", "run", self.name]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def send(self, signal: str) -> None:
        podman("kill", f"--signal={signal}", self.name)

    def exit_code(self) -> int:
        """Wait for its end."""
        return int(podman("wait", self.name))


@contextmanager
def container(
    image: str, options: Sequence[str], command: Sequence[str] = ()
) -> Iterator[Container]:
    """Start a container in the background; it is removed at the end."""
    name = f"motab-test-{os.getpid()}-{time.monotonic_ns()}"
    try:
        podman("run", "--detach", f"--name={name}", *_LIMITS, *options, image, *command)
        yield Container(name)
    finally:
        podman("rm", "--force", "--time=0", "--ignore", name)
