"""Files and folders that are written aside and take their place when they are complete."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final, Self

from synth_client.errors import OutputError
from synth_client.journal import reported, sync_folder
from synth_client.workspace import replace_file

_BUFFER_BYTES: Final = 2**20


class AsideFile:
    """A file beside `path` that takes its place once it is published, and goes if it is not."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._aside = path.with_name(f"{path.name}.partial")
        self.file: BinaryIO = self._aside.open("wb", buffering=_BUFFER_BYTES)

    def __enter__(self) -> Self:
        return self

    def publish(self) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())
        replace_file(self._path, self._aside)

    def __exit__(self, *_: object) -> None:
        try:
            self.file.close()
        finally:
            self._aside.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Put a file in place as a whole, or not at all. Raises `OutputError` where it cannot be."""
    with reported(path), AsideFile(path) as aside:
        aside.file.write(content)
        aside.publish()


@contextmanager
def aside_folder(path: Path, marker: str, *, overwrite: bool) -> Iterator[Path]:
    """An empty folder that takes the place of `path` when the body ends without an error.

    A folder with something in it is replaced only with `overwrite`, and only if the file `marker`
    says that it was made in this way. Raises `OutputError` otherwise.
    """
    with reported(path):
        _check_replaceable(path, marker, overwrite=overwrite)
        path.parent.mkdir(parents=True, exist_ok=True)
        aside, old = (path.with_name(f".{path.name}.{name}") for name in ("partial", "old"))
        for left in (aside, old):  # by one that was killed
            if left.exists():
                shutil.rmtree(left)
        aside.mkdir()
    try:
        yield aside
        with reported(path):
            _sync(aside)
            if path.exists():
                path.rename(old)
            aside.rename(path)
            sync_folder(path.parent)
            if old.exists():
                shutil.rmtree(old)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _check_replaceable(path: Path, marker: str, *, overwrite: bool) -> None:
    if not path.exists():
        return
    if not path.is_dir():
        raise OutputError(f"{path} is a file; wanted is a folder")
    if not any(path.iterdir()):
        return
    if not overwrite:
        raise OutputError(f"{path} is not empty; choose another folder, or --overwrite")
    if not (path / marker).is_file():
        raise OutputError(f"{path} holds no export, so it is not overwritten; choose another")


def _sync(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
