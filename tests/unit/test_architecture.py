"""Dependencies point one way: core <- backends <- engine <- api <- the composition root."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What each layer may import of ours. The last three are the composition root.
ALLOWED = {
    "proxy.core": set(),
    "proxy.errors": set(),
    "proxy.options": {"proxy.core"},
    "proxy.config": {"proxy.errors", "proxy.options"},
    "proxy.backends": {"proxy.core", "proxy.errors"},
    "proxy.engine": {"proxy.core", "proxy.backends.base", "proxy.errors", "proxy.options"},
    "proxy.api": {
        "proxy",
        "proxy.core.types",
        "proxy.backends.base",
        "proxy.engine",
        "proxy.config",
        "proxy.options",
        "proxy.errors",
    },
    # The client knows the proxy over HTTP; rescoring applies the algorithm's rules, which are pure.
    "synth_client": {"proxy.core"},
    # An evaluation is a plain run of the client with its answers judged.
    "trainer": {"synth_client"},
    "configs": set(),
    # The harness knows the proxy as a process; its real vLLM is started as the trainer starts one.
    "benchmarks": {"proxy.backends", "trainer"},
}
CORE_MODULES = {"collections", "dataclasses", "math", "random", "typing"}


def imports_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found.add(node.module or "")
    return found


def is_within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def modules_of(layer: str) -> list[Path]:
    path = ROOT / layer.replace(".", "/")
    return sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]


@pytest.mark.parametrize("layer", ALLOWED)
def test_a_layer_imports_only_what_lies_below_it(layer: str) -> None:
    paths = modules_of(layer)
    assert paths, f"no modules in {layer}"
    for path in paths:
        ours = {
            name
            for name in imports_of(path)
            if is_within(name, "proxy") or name.split(".")[0] in {"synth_client", "trainer"}
        }
        wrong = {
            name
            for name in ours
            if not is_within(name, layer)
            and not any(
                name == below or (below != "proxy" and is_within(name, below))
                for below in ALLOWED[layer]
            )
        }
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


def test_the_core_imports_a_few_standard_modules_only() -> None:
    for path in modules_of("proxy.core"):
        foreign = {
            name.split(".")[0] for name in imports_of(path) if not is_within(name, "proxy.core")
        }
        assert foreign <= CORE_MODULES, f"{path.relative_to(ROOT)} imports {foreign}"
        assert foreign <= sys.stdlib_module_names


def test_every_module_belongs_to_a_layer() -> None:
    root_modules = {
        "proxy",
        "proxy.cli",
        "proxy.demo",
        "proxy.logs",
        "proxy.probe",
        "proxy.serve",
        "proxy.supervisor",
        "proxy.upstreams",
        "proxy.wiring",
        "proxy.worker",
    }
    for package in ("proxy", "synth_client", "trainer", "configs", "benchmarks"):
        for path in (ROOT / package).rglob("*.py"):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(
                ".__init__"
            )
            known = (
                module in root_modules
                or is_within(module, "proxy.probe")
                or any(is_within(module, layer) for layer in ALLOWED)
            )
            assert known, f"{module} belongs to no layer"
