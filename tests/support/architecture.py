"""Finds what breaks the rules of the tree: imports, folder sizes, names, docstrings."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Final

PACKAGES: Final = (
    *("motab", "proxy", "synth_client", "trainer", "trajectory_records", "configs", "benchmarks"),
)
TYPED: Final = ("motab", "proxy", "synth_client", "trainer", "trajectory_records")
MAX_MODULES: Final = 16
MAX_LINES: Final = 400
_DOTTED: Final = re.compile(
    r"(?<![\w./-])(?:proxy|synth_client|trainer|trajectory_records|benchmarks)(?:\.[A-Za-z_]\w*)+"
)
_FILES: Final = (".yaml", ".log", ".json", ".toml")


@dataclass(frozen=True)
class Module:
    """A source file and its dotted name; a package goes by the name of its folder."""

    name: str
    path: Path

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"

    @property
    def folder(self) -> str:
        return self.name if self.is_package else self.name.rpartition(".")[0]

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.path.read_text(encoding="utf-8"))

    def imports(self) -> Iterator[str]:
        """Dotted names of what it imports, wherever the statement stands."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{self.name}: imports are absolute"
                assert node.module is not None
                # `from package import module` imports the module, too.
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules(root: Path, *packages: str) -> Iterator[Module]:
    """Every module of the packages in `root`."""
    for package in packages:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            yield Module(".".join(parts).removesuffix(".__init__"), path)


def is_within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def row_of(module: Module, allowed: Mapping[str, frozenset[str]]) -> str | None:
    """The row that rules a module: its own, or that of its folder."""
    return next((name for name in (module.name, module.folder) if name in allowed), None)


def forbidden_imports(root: Path, allowed: Mapping[str, frozenset[str]]) -> list[str]:
    """Modules that no row rules, and imports of ours that the row does not allow."""
    faults = []
    for module in modules(root, *PACKAGES):
        row = row_of(module, allowed)
        if row is None:
            faults.append(f"{module.name} belongs to no row of the rule")
            continue
        below = allowed[row] | {module.folder}
        faults += [
            f"{module.name} imports {name}"
            for name in module.imports()
            if name.split(".")[0] in PACKAGES
            and not any(_is_reached(name, floor, allowed) for floor in below)
        ]
    return faults


def _is_reached(name: str, floor: str, allowed: Mapping[str, frozenset[str]]) -> bool:
    """Return whether `name` is in a floor, and not in a row inside that floor."""
    if not is_within(name, floor):
        return False
    return not any(
        is_within(name, row) for row in allowed if row != floor and is_within(row, floor)
    )


def crowded_folders(root: Path, *packages: str) -> list[str]:
    """Folders with more than 16 modules."""
    sizes: defaultdict[str, int] = defaultdict(int)
    for module in modules(root, *packages):
        sizes[module.folder] += not module.is_package
    return [f"{name} holds {size} modules" for name, size in sizes.items() if size > MAX_MODULES]


def long_files(root: Path, *packages: str) -> list[str]:
    """Files with more than 400 lines."""
    sizes = (
        (module.name, len(module.path.read_text(encoding="utf-8").splitlines()))
        for module in modules(root, *packages)
    )
    return [f"{name} has {size} lines" for name, size in sizes if size > MAX_LINES]


def silent_packages(root: Path, *packages: str) -> list[str]:
    """Packages whose `__init__` does not say what they are, and folders without one."""
    known = {module.path.parent for module in modules(root, *packages) if module.is_package}
    faults = [
        f"{module.path.parent.relative_to(root)} has no __init__.py"
        for module in modules(root, *packages)
        if module.path.parent not in known
    ]
    return faults + [
        f"{module.name} has no docstring"
        for module in modules(root, *packages)
        if module.is_package and not ast.get_docstring(module.tree)
    ]


def repeated_classes(root: Path, *packages: str) -> list[str]:
    """Class names that one package defines twice."""
    faults = []
    for package in packages:
        places: defaultdict[str, list[str]] = defaultdict(list)
        for module in modules(root, package):
            for node in ast.walk(module.tree):
                if isinstance(node, ast.ClassDef):
                    places[node.name].append(module.name)
        faults += [
            f"{name} is a class of {', '.join(where)}"
            for name, where in places.items()
            if len(where) > 1
        ]
    return faults


def broken_names(root: Path, *packages: str) -> list[str]:
    """Dotted names of our modules in strings (commands, docstrings, patches) that lead nowhere."""
    faults = []
    for module in modules(root, *packages):
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                faults += [
                    f"{module.name} names {name}"
                    for name in _DOTTED.findall(node.value)
                    if not name.endswith(_FILES) and not _resolves(name)
                ]
    return faults


def _resolves(name: str) -> bool:
    """Return whether it is a module, or an attribute of one."""
    parts = name.split(".")
    for number in range(len(parts), 0, -1):
        try:
            spec = find_spec(".".join(parts[:number]))
        except ModuleNotFoundError:
            continue
        if spec is None:
            continue
        rest = parts[number:]
        return not rest or _has(".".join(parts[:number]), rest)
    return False


def _has(module: str, attributes: list[str]) -> bool:
    try:
        found: object = import_module(module)
    except ImportError:  # runs in another environment only
        return True
    for attribute in attributes:
        if not hasattr(found, attribute):
            return False
        found = getattr(found, attribute)
    return True
