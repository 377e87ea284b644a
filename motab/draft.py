"""Writes a configuration of one pair as YAML, with short comments on what was found."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import yaml

from proxy.core.types import Author

Value = str | int | float | bool
_PLAIN: Final = re.compile(r"[\w./@+:-]+", re.ASCII)
_NOT_IN_NAMES: Final = re.compile(r"[^a-z0-9._-]+")
_LONGEST_NAME: Final = 60
_WIDTH: Final = 98


@dataclass(frozen=True, slots=True)
class Setting:
    """A key's value. `note` says where it comes from; `is_open` leaves it to the reader."""

    value: Value
    note: str = ""
    is_open: bool = False


@dataclass(slots=True)
class Section:
    """An upstream: what was found about it, and its keys in their order."""

    about: list[str]
    settings: dict[str, Setting]


@dataclass(slots=True)
class Draft:
    """A configuration of two upstreams, named for their roles, and of their pair."""

    upstreams: Mapping[Author, Section]
    pair: str
    params: dict[str, Setting] = field(default_factory=dict)
    about: list[str] = field(default_factory=list)
    """The comments above everything."""

    def text(self) -> str:
        """Return the file's content."""
        return "\n".join(self._lines()) + "\n"

    def _lines(self) -> Iterator[str]:
        for about in self.about:
            yield from _comment(about, "")
        yield from ("server:", "  host: 127.0.0.1", "  port: 8800", "", "upstreams:")
        for name, section in self.upstreams.items():
            for about in section.about:
                yield from _comment(about, "  ")
            yield f"  {name}:"
            yield from _settings(section.settings, "    ")
        yield from ("", "models:", f"  {_scalar(self.pair)}:")
        yield from ("    student: student", "    teacher: teacher")
        if self.params:
            is_open = all(setting.is_open for setting in self.params.values())
            yield "    # params:" if is_open else "    params:"
            yield from _settings(self.params, "      ")


def pair_name(student: str, teacher: str) -> str:
    """Return a name for a pair of models, which clients can write without quotes."""
    return f"motab/{_short(student)}+{_short(teacher)}"


def _short(model: str) -> str:
    last = model.rstrip("/").rpartition("/")[2].lower().removesuffix(".gguf")
    return _NOT_IN_NAMES.sub("-", last)[:_LONGEST_NAME].strip("-.") or "model"


def _settings(settings: Mapping[str, Setting], indent: str) -> Iterator[str]:
    for name, setting in settings.items():
        mark = "# " if setting.is_open else ""
        line = f"{indent}{mark}{name}: {_scalar(setting.value)}"
        note = f"  # {_one_line(setting.note)}" if setting.note else ""
        if note and len(line + note) > _WIDTH:
            yield from _comment(setting.note, indent)
            note = ""
        yield line + note


def _scalar(value: Value) -> str:
    """Return a value as YAML; a text that would be read as something else is quoted."""
    if isinstance(value, str) and _PLAIN.fullmatch(value) and yaml.safe_load(value) == value:
        return value
    return json.dumps(value)


def _comment(text: str, indent: str) -> Iterator[str]:
    """Break a comment into lines. A server's words may be in it, and shall not end it."""
    line = f"{indent}#"
    for word in _one_line(text).split(" "):
        if len(line) + 1 + len(word) > _WIDTH and not line.endswith("#"):
            yield line
            line = f"{indent}#"
        line += f" {word}"
    yield line


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))
