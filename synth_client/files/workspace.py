"""Lays out the files around an output, and locks them for one run.

`OUT.jsonl`, `OUT.failed.jsonl`, `OUT.dropped.jsonl`, and `OUT.journal/` with `lock`, `journal`,
`manifest.json` and, in `old-1` and so on, the files that `--fresh` moved away.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Final

import orjson
from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from synth_client.errors import OutputError, RunMismatch
from synth_client.files.atomic import output_errors, write_whole
from trajectory_records.complaints import complaints_of
from trajectory_records.disk import sync

_MANIFEST: Final = "manifest.json"
_JOURNAL: Final = "journal"


class Manifest(BaseModel):
    """Identifies a run. `identity` may not change while its journal is kept; `extent` may grow."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    identity: dict[str, JsonValue]
    extent: dict[str, JsonValue]
    motab_version: str


@dataclass(frozen=True, slots=True)
class Workspace:
    """The paths of one output."""

    output: Path

    @property
    def failed(self) -> Path:
        """The file of failed rows."""
        return self.output.with_name(f"{self._stem}.failed.jsonl")

    @property
    def dropped(self) -> Path:
        """The file of records that a filter dropped."""
        return self.output.with_name(f"{self._stem}.dropped.jsonl")

    @property
    def folder(self) -> Path:
        """The folder of the journal and its companions."""
        return self.output.with_name(f"{self._stem}.journal")

    @property
    def journal(self) -> Path:
        """The journal itself."""
        return self.folder / _JOURNAL

    @property
    def units(self) -> Path:
        """The folder in which the units of a run on a cluster wait."""
        return self.folder / "units"

    @property
    def _stem(self) -> str:
        return self.output.name.removesuffix(".jsonl")


@contextmanager
def open_workspace(output: Path, manifest: Manifest, *, fresh: bool) -> Iterator[Workspace]:
    """Lock the output for this process and check that its journal is this run's.

    `fresh` first moves all existing files away. Raises `RunMismatch` if another process has the
    lock, the journal is another run's, or an output has no journal.
    """
    workspace = Workspace(output)
    with output_errors(workspace.folder):
        workspace.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(workspace.folder / "lock", timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise RunMismatch(f"{output}: another motab synth is writing to it") from error
    try:
        if fresh:
            _archive(workspace)
        _check(workspace, manifest)
        yield workspace
    finally:
        lock.release()


def _check(workspace: Workspace, manifest: Manifest) -> None:
    path = workspace.folder / _MANIFEST
    if path.exists():
        kept = _read(path)
        differences = _differences(kept.identity, manifest.identity)
        if differences and _is_begun(workspace):
            raise RunMismatch(
                f"{workspace.folder} is the journal of a different run: {differences};"
                " choose another output, or --fresh to move it away and start over"
            )
        if kept == manifest:
            return
    elif workspace.output.exists():
        raise RunMismatch(
            f"{workspace.output} exists and has no journal;"
            " choose another output, or --fresh to move it away"
        )
    write_whole(path, orjson.dumps(manifest.model_dump(), option=orjson.OPT_INDENT_2))


def _is_begun(workspace: Workspace) -> bool:
    """Return whether any file of an earlier run exists."""
    with output_errors(workspace.journal):
        is_empty = not workspace.journal.exists() or workspace.journal.stat().st_size == 0
    return workspace.output.exists() or not is_empty


def _read(path: Path) -> Manifest:
    try:
        with output_errors(path):
            return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise OutputError(f"{path}: not a manifest: {complaints_of(error)}") from error


def _differences(there: Mapping[str, JsonValue], here: Mapping[str, JsonValue]) -> str:
    return ", ".join(
        f"{name} is {_shown(there.get(name))} there and {_shown(here.get(name))} here"
        for name in sorted(there.keys() | here.keys())
        if there.get(name) != here.get(name)
    )


def _shown(value: JsonValue) -> str:
    return "not set" if value is None else orjson.dumps(value).decode()


def _archive(workspace: Workspace) -> None:
    folder = workspace.folder
    there = [folder / _JOURNAL, folder / _MANIFEST]
    there += [workspace.output, workspace.failed, workspace.dropped]
    there = [path for path in there if path.exists()]
    if not there:
        return
    with output_errors(folder):
        old = next(path for n in count(1) if not (path := folder / f"old-{n}").exists())
        old.mkdir()
        # The manifest last: after a crash in between, the journal still has its manifest.
        for path in sorted(there, key=lambda path: path.name == _MANIFEST):
            path.replace(old / path.name)
        sync(folder)
