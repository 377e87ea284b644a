"""Puts files and folders in place whole or not at all, and names the path when the system refuses.

Everything is fsynced before it takes its place, so a power cut leaves the old content or the new.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final, Self

from synth_client.errors import OutputError
from trajectory_records.disk import sync

_BUFFER_BYTES: Final = 2**20


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn an `OSError` of the body into an `OutputError` that names `path`."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror or error}") from error


class AtomicFile:
    """A file that takes the place of `path` when it is published, and vanishes otherwise.

    Every method raises OSError if the disk refuses; `output_errors` translates it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._partial = path.with_name(f"{path.name}.partial")
        self.file: BinaryIO = self._partial.open("wb", buffering=_BUFFER_BYTES)

    def __enter__(self) -> Self:
        return self

    def publish(self) -> None:
        """Replace `path` with the written content."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self._partial.replace(self._path)
        sync(self._path.parent)

    def publish_unless_empty(self) -> None:
        """Do the same, but remove `path` if nothing was written."""
        if self.file.tell():
            self.publish()
        else:
            self._path.unlink(missing_ok=True)

    def __exit__(self, *_: object) -> None:
        try:
            self.file.close()
        finally:
            self._partial.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file's content in one step. Raises `OutputError` if that fails."""
    with output_errors(path), AtomicFile(path) as whole:
        whole.file.write(content)
        whole.publish()


@contextmanager
def atomic_folder(path: Path, marker: str, *, overwrite: bool) -> Iterator[Path]:
    """Make an empty folder that takes the place of `path` when the body ends without an error.

    A folder with content is replaced only with `overwrite`, and only if the file `marker` shows
    that it was made in this way. Raises `OutputError` otherwise.
    """
    with output_errors(path):
        _check_replaceable(path, marker, overwrite=overwrite)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        if partial.exists():  # left by a process that was killed
            shutil.rmtree(partial)
        partial.mkdir()
    try:
        yield partial
        with output_errors(path):
            replace_folder(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def replace_folder(new: Path, path: Path) -> None:
    """Put the folder `new` in the place of `path`. Raises OSError."""
    for inside in [*new.rglob("*"), new]:
        sync(inside)
    old = path.with_name(f".{path.name}.old")
    if old.exists():  # left by a process that was killed
        shutil.rmtree(old)
    if path.exists():
        path.rename(old)
    new.rename(path)
    sync(path.parent)
    if old.exists():
        shutil.rmtree(old)


def _check_replaceable(path: Path, marker: str, *, overwrite: bool) -> None:
    if not path.exists():
        return
    if not path.is_dir():
        raise OutputError(f"{path} is a file, not a folder")
    if not any(path.iterdir()):
        return
    if not overwrite:
        raise OutputError(f"{path} is not empty; choose another folder, or use --overwrite")
    if not (path / marker).is_file():
        raise OutputError(f"{path} is not an export, so it is not overwritten; choose another")
