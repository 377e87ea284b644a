"""Reads the Dockerfile and carries its steps out without an engine, in one folder."""

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any

from tests.support.paths import ROOT

# What the steps may name; all else is the machine's that the tests run on.
_OURS = re.compile(r"(?<![\w./])/(?=(?:src|wheels|opt|home|etc)\b)")
_OF_THE_BASE = ("etc", "home", "opt")
_STEPS = {"ARG", "COPY", "ENV", "RUN", "WORKDIR"}
_SAID = {"ENTRYPOINT", "EXPOSE", "HEALTHCHECK", "USER"}
"""Carried out by an engine when the image runs, not when it is built."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction, its continued lines joined."""

    name: str
    value: str

    def argv(self) -> list[str]:
        """The command of an instruction in its JSON form."""
        found: list[str] = json.loads(self.value[self.value.index("[") :])
        return found

    def words(self) -> list[str]:
        """The arguments, without options such as --from."""
        return [word for word in shlex.split(self.value) if not word.startswith("--")]

    def option(self, name: str) -> str | None:
        """The value of an option such as --from."""
        values = dict(re.findall(r"--([a-z]+)=(\S+)", self.value))
        return values.get(name)


@dataclass(slots=True)
class Stage:
    """The steps between two FROMs."""

    name: str
    base: str
    instructions: list[Instruction] = field(default_factory=list)

    def only(self, name: str) -> Instruction:
        """The one instruction of that name."""
        (found,) = (one for one in self.instructions if one.name == name)
        return found


def stages(path: Path = ROOT / "Dockerfile") -> list[Stage]:
    """The file's stages, in order, arguments at their defaults; the image is the last one."""
    text = re.sub(r"^#.*\n", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    found: list[Stage] = []
    arguments: dict[str, str] = {}
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        name, _, value = line.partition(" ")
        if name == "FROM":
            base, *alias = Template(value).substitute(arguments).split(" AS ")
            found.append(Stage(alias[0] if alias else "", base))
        elif name == "ARG" and not found:
            argument, _, default = value.partition("=")
            arguments[argument] = default
        elif line:
            found[-1].instructions.append(Instruction(name, value))
    return found


class Build:
    """Carries stages out in one folder, which is `/` to the paths that the steps name.

    A finished stage's files move away, so the next has only what it copies, at the same paths.
    `python` is the base image's. Users and owners are left out: that needs root, and an engine.
    """

    def __init__(self, folder: Path, python: Path) -> None:
        self.root = folder / "root"
        self.environment: dict[str, str] = {}
        self._folder = folder
        self._python = python
        self._workdir = self.root

    def run(self, stage: Stage, context: Path) -> None:
        """Carry the stage's steps out on the given build context."""
        if self.root.exists():
            shutil.rmtree(self._folder / "before", ignore_errors=True)
            self.root.rename(self._folder / "before")
        for name in _OF_THE_BASE:
            (self.root / name).mkdir(parents=True)
        self._workdir, self.environment = self.root, self._inherited()
        for step in stage.instructions:
            if step.name not in _STEPS | _SAID:
                raise ValueError(f"do not know how to carry out {step.name}")
            if step.name == "COPY":
                source = context if step.option("from") is None else self._folder / "before"
                self._copy(step.words(), source)
            elif step.name == "ARG":
                name, _, default = step.value.partition("=")
                self.environment[name] = default
            elif step.name == "ENV":
                for word in step.words():
                    name, _, value = word.partition("=")
                    expanded = re.sub(r"\$(\w+)", self._variable, value)
                    self.environment[name] = self.inside(expanded)
            elif step.name == "WORKDIR":
                self._workdir = Path(self.inside(step.value))
                self._workdir.mkdir(parents=True, exist_ok=True)
            elif step.name == "RUN":
                self.check_run(["sh", "-euc", self.inside(step.value)])

    def inside(self, text: str) -> str:
        """The text with its paths below the folder that stands for `/`."""
        return _OURS.sub(f"{self.root}/", text)

    def check_run(self, command: list[str], **settings: Any) -> "subprocess.CompletedProcess[str]":
        """Run a command as in the image; raises with what it wrote where it fails."""
        done = subprocess.run(
            command,
            cwd=self._workdir,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            **settings,
        )
        if done.returncode:
            raise AssertionError(f"{command} failed:\n{done.stdout}{done.stderr}")
        return done

    def _inherited(self) -> dict[str, str]:
        """The variables that an engine hands on: pip's index, and no settings of Python's."""
        kept: Mapping[str, str] = {
            name: value
            for name, value in os.environ.items()
            if name.startswith("PIP_") or name.lower().endswith("_proxy") or "CERT" in name
        }
        return {**kept, "HOME": str(self._folder), "PATH": f"{self._python.parent}:{os.defpath}"}

    def _variable(self, found: re.Match[str]) -> str:
        return self.environment[found[1]]

    def _copy(self, words: list[str], source: Path) -> None:
        *names, target = words
        into = self._workdir / self.inside(target)
        for name in names:
            path = source / name.lstrip("/")
            place = into / path.name if path.is_file() or target.endswith("/") else into
            if path.is_dir():
                shutil.copytree(path, place, symlinks=True, dirs_exist_ok=True)
            else:
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, place)
