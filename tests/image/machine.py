"""Gets this machine ready for containers, and finds what pip needs to reach an index here."""

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

# Debian's names. runc also starts containers where cgroups v1 and v2 are both mounted.
PACKAGES: Final = {"mmdebstrap": "mmdebstrap", "podman": "podman", "runc": "runc"}
"""The package of each program."""
_APT: Final = ("apt-get", "-qq", "-y", "--no-install-recommends")
# Where packages come from and how; the other settings of pip are for this machine's own folders.
_REACHING_AN_INDEX: Final = frozenset(
    ("cert", "client-cert", "extra-index-url", "find-links", "index-url", "no-index", "proxy")
) | {"retries", "timeout", "trusted-host"}


class NotReady(Exception):
    """Containers cannot be run here; the message says what is needed."""


def install_programs() -> None:
    """Install the missing programs, as root. Raises `NotReady` with what to install."""
    missing = [package for program, package in PACKAGES.items() if shutil.which(program) is None]
    if os.geteuid() != 0:
        needed = f"; root must first run: apt-get install {' '.join(missing)}" if missing else ""
        message = "make test-image needs root, because it makes a file system and mounts it"
        raise NotReady(message + needed)
    if not missing:
        return
    if shutil.which("apt-get") is None:
        raise NotReady(f"make test-image needs {', '.join(missing)}, and there is no apt-get here")
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for words in (("update",), ("install", *missing)):
        subprocess.run([*_APT, *words], env=quiet, check=True, stdout=subprocess.DEVNULL)


def mounts_for_pip(folder: Path) -> Iterator[str]:
    """Yield what a build must mount so that pip finds packages there as it does here.

    The settings are written into `folder` as one file; the files and folders that they name are
    mounted at their own paths.
    """
    settings = _settings()
    path = folder / "pip.conf"
    lines = [f"{name} = {value}" for name, value in settings.items()]
    path.write_text("\n".join(("[global]", *lines, "")), encoding="utf-8")
    yield f"{path}:/etc/pip.conf:ro"
    words = " ".join(settings.values()).split()
    named = {word.removeprefix("file://") for word in words}
    for name in sorted(named):
        if name.startswith("/") and (found := _existing(Path(name))) is not None:
            yield f"{found}:{found}:ro"


def _settings() -> dict[str, str]:
    """pip's settings here, the environment's before the files'."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, str] = {}
    for line in reversed(listing.splitlines()):  # `:env:` comes first in the list
        key, _, value = line.partition("=")
        name = key.rpartition(".")[2]
        if name in _REACHING_AN_INDEX:
            found[name] = " ".join(str(ast.literal_eval(value)).split())
    return found


def _existing(path: Path) -> Path | None:
    """The path, or the folder of the packages that an index at `path` links to, if they exist."""
    # `simple` links to files of its neighbours.
    found = path.parent if path.name == "simple" else path
    return found if found.exists() else None
