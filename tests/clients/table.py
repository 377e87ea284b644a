"""Reads the table of docs/your-tool.md, and makes a row of it from what a tool got."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.paths import ROOT

PAGE = ROOT / "docs" / "your-tool.md"
_ROW = re.compile(r"^\| ([a-z-]+) \| ([0-9.]+) \| .* \|$", re.MULTILINE)
_LOCKED = re.compile(r"^([a-z0-9-]+)==([^ ]+) ", re.MULTILINE)


@dataclass(frozen=True)
class Found:
    """The version, the answers and the refusals that the script of a tool wrote down."""

    version: str
    answers: Mapping[str, Mapping[str, Any]]
    refusals: Mapping[str, str]

    @classmethod
    def read(cls, path: Path) -> "Found":
        return cls(**json.loads(path.read_text(encoding="utf-8")))


def rows() -> dict[str, str]:
    """Return the rows of the table by the names of their tools."""
    page = PAGE.read_text(encoding="utf-8")
    return {found[1]: found[0] for found in _ROW.finditer(page)}


def documented_versions() -> dict[str, str]:
    """Return the version of each tool that the table names."""
    return dict(_ROW.findall(PAGE.read_text(encoding="utf-8")))


def locked_versions(*environments: str) -> dict[str, str]:
    """Return the version of every package that these environments lock."""
    locks = (ROOT / "requirements" / f"{name}.lock" for name in environments)
    return {
        name: version
        for lock in locks
        for name, version in _LOCKED.findall(lock.read_text(encoding="utf-8"))
    }


def row_of(package: str, found: Found) -> str:
    """Return the row that says what the tool got."""
    answered = ", ".join(found.answers)
    refused = ", ".join(f"{way} (`{field}`)" for way, field in found.refusals.items())
    kept = [way for way, answer in found.answers.items() if answer["motab"]]
    lost = [way for way in found.answers if way not in kept]
    trace = "kept" if not lost else f"not in: {', '.join(lost)}" if kept else "lost"
    return f"| {package} | {found.version} | {answered} | {refused or 'nothing'} | {trace} |"
