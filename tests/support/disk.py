"""Watches the order in which files reach the disk and take their places."""

import os
from pathlib import Path
from typing import Any

import pytest


def watch_disk(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """A list that grows by `("sync", name)` and `("place", name)` as they happen."""
    seen: list[tuple[str, str]] = []
    fsync, replace, rename = os.fsync, Path.replace, Path.rename

    def sync(descriptor: int) -> None:
        seen.append(("sync", Path(f"/proc/self/fd/{descriptor}").readlink().name))
        fsync(descriptor)

    def put(move: Any) -> Any:
        def moved(source: Path, target: Path) -> Any:
            seen.append(("place", target.name))
            return move(source, target)

        return moved

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "replace", put(replace))
    monkeypatch.setattr(Path, "rename", put(rename))
    return seen
