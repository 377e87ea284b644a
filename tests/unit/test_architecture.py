"""The tree keeps its shape: what a folder may import, how large it is, what it is called."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.architecture import (
    MAX_LINES,
    MAX_MODULES,
    PACKAGES,
    TYPED,
    broken_names,
    crowded_folders,
    forbidden_imports,
    is_within,
    long_files,
    modules,
    repeated_classes,
    silent_packages,
)
from tests.support.paths import ROOT

_CORE = frozenset({"proxy.core"})
_TRACER = frozenset({"proxy.tracing.attributes", "proxy.tracing.tracer"})
_PROXY_GROUND = _TRACER | frozenset(
    {
        "proxy.core",
        "proxy.engine",
        "proxy.engine.corrections",
        "proxy.errors",
        "proxy.options",
        "proxy.config",
        "proxy.log_context",
        "proxy.remote_config",
        "proxy.secrets",
        "proxy.server_config",
    }
)
_WIRE = _TRACER | frozenset(
    {
        "proxy.core",
        "proxy.errors",
        "proxy.secrets",
        "proxy.backends.base",
        "proxy.backends.clock",
        "proxy.backends.limits",
        "proxy.backends.stay",
        "proxy.backends.token_ids",
        "proxy.backends.worker_slots",
    }
)
_CLIENT_GROUND = frozenset(
    {
        "proxy.near_names",
        "synth_client.errors",
        "synth_client.files",
        "trajectory_records",
    }
)
_TRAINER_GROUND = frozenset({"trainer.errors", "trainer.environments"})
_CLIENT = frozenset(
    {
        "proxy.near_names",
        "synth_client",
        "synth_client.errors",
        "synth_client.prices",
        "synth_client.files",
        "synth_client.questions",
        "synth_client.asking",
        "synth_client.cluster",
        "synth_client.judging",
        "synth_client.training_data",
        "synth_client.runs",
        "synth_client.report",
        "synth_client.cli",
        "trajectory_records",
    }
)
_TRAINED = _CLIENT | _TRAINER_GROUND | {"trainer.training", "trainer.evaluation"}
# A row for every folder, and for each module that is a floor of its own: what of ours it may
# import. A folder's own modules always may; a row that is named does not open the rows inside it.
ALLOWED: dict[str, frozenset[str]] = {
    "proxy": frozenset(),
    "proxy.core": frozenset({"proxy.core.corrections"}),
    "proxy.core.corrections": _CORE,
    "proxy.errors": frozenset({"proxy.secrets"}),
    "proxy.secrets": frozenset(),
    **dict.fromkeys(("proxy.log_context", "proxy.near_names", "proxy.processes"), frozenset()),
    "proxy.complaints": frozenset({"proxy.near_names"}),
    "proxy.options": _CORE | {"proxy.complaints", "proxy.near_names"},
    "proxy.yaml_file": frozenset(),
    "proxy.config": frozenset(
        {
            "proxy.complaints",
            "proxy.errors",
            "proxy.near_names",
            "proxy.options",
            "proxy.remote_config",
            "proxy.secrets",
            "proxy.server_config",
            "proxy.variables",
            "proxy.yaml_file",
        }
    ),
    "proxy.variables": frozenset({"proxy.errors", "proxy.secrets"}),
    "proxy.server_config": frozenset(),
    "proxy.remote_config": frozenset({"proxy.secrets", "proxy.server_config"}),
    # The tracer's protocols, which all folders know, and the library behind them, which only the
    # wiring does.
    "proxy.tracing": frozenset(),
    "proxy.tracing.tracer": frozenset(),
    "proxy.tracing.attributes": frozenset({"proxy.tracing.tracer"}),
    "proxy.tracing.open_telemetry": _TRACER | {"proxy", "proxy.errors", "proxy.secrets"},
    "proxy.backends": _WIRE,
    "proxy.backends.base": _CORE
    | {
        "proxy.backends.clock",
        "proxy.backends.stay",
        "proxy.backends.token_ids",
        "proxy.tracing.tracer",
    },
    "proxy.backends.clock": frozenset(),
    "proxy.backends.token_ids": frozenset({"proxy.errors"}),
    "proxy.backends.stay": frozenset(),
    "proxy.backends.limits": frozenset(),
    "proxy.backends.worker_slots": frozenset(),
    "proxy.backends.self_test": _WIRE,
    "proxy.backends.transport": _WIRE,
    "proxy.backends.tokens": _WIRE,
    "proxy.backends.embedded": frozenset({"proxy.errors", "proxy.processes"}),
    "proxy.backends.judges": _WIRE | {"proxy.backends.tokens", "proxy.backends.transport"},
    "proxy.backends.servers": _WIRE
    | {
        "proxy.backends.judges",
        "proxy.backends.self_test",
        "proxy.backends.tokens",
        "proxy.backends.transport",
    },
    "proxy.engine": _WIRE | {"proxy.options", "proxy.engine.corrections"},
    "proxy.engine.corrections": _WIRE | {"proxy.options"},
    "proxy.api": _PROXY_GROUND
    | {
        "proxy",
        "proxy.backends.base",
        "proxy.backends.clock",
        "proxy.complaints",
        "proxy.near_names",
        "proxy.page",
        "trajectory_records",
    },
    "proxy.page": _PROXY_GROUND
    | {
        "proxy",
        "trajectory_records",
        "trajectory_records.viewer",
    },
    "proxy.wiring": _PROXY_GROUND
    | {
        "proxy.api",
        "proxy.backends.base",
        "proxy.backends.limits",
        "proxy.backends.worker_slots",
        "proxy.backends.embedded",
        "proxy.backends.judges",
        "proxy.backends.servers",
        "proxy.backends.tokens",
        "proxy.backends.transport",
        "proxy.tracing.open_telemetry",
        "trajectory_records",
    },
    "proxy.probe": _PROXY_GROUND
    | {
        "proxy",
        "proxy.near_names",
        "proxy.api",
        "proxy.backends.base",
        "proxy.backends.limits",
        "proxy.backends.self_test",
        "proxy.backends.transport",
        "proxy.wiring",
    },
    "proxy.serving": _PROXY_GROUND
    | {
        "proxy.processes",
        "proxy.api",
        "proxy.backends.base",
        "proxy.backends.worker_slots",
        "proxy.wiring",
    },
    # Both the proxy and the client make records, and neither may import the other.
    "trajectory_records": _CORE | {"proxy.near_names"},
    "trajectory_records.viewer": frozenset({"trajectory_records"}),
    # The client speaks HTTP to the proxy; it shares the algorithm's rules, which are pure, and the
    # list of secrets, of which a process has one.
    "synth_client": frozenset(),
    "synth_client.errors": frozenset({"proxy.secrets"}),
    "synth_client.prices": frozenset({"trajectory_records"}),
    "synth_client.files": _CLIENT_GROUND,
    "synth_client.questions": _CLIENT_GROUND,
    "synth_client.judging": _CLIENT_GROUND | {"synth_client.judging.numbers"},
    "synth_client.judging.numbers": frozenset(),
    "synth_client.asking": _CLIENT_GROUND | _CORE | {"proxy.secrets", "synth_client.questions"},
    "synth_client.cluster": _CLIENT_GROUND | {"synth_client.questions", "synth_client.asking"},
    "synth_client.training_data": _CLIENT_GROUND
    | _CORE
    | {"synth_client.questions", "synth_client.judging"},
    "synth_client.report": _CLIENT_GROUND
    | _CORE
    | {"synth_client.prices", "trajectory_records.viewer"},
    "synth_client.runs": _CLIENT - {"synth_client.report", "synth_client.cli"},
    "synth_client.cli": _CLIENT,
    "trainer": frozenset(),
    "trainer.errors": frozenset({"synth_client.errors"}),
    "trainer.environments": frozenset({"synth_client.errors", "trainer.errors"}),
    "trainer.training": _CLIENT | _TRAINER_GROUND | {"proxy.yaml_file"},
    "trainer.evaluation": _CLIENT | _TRAINER_GROUND,
    # Its scripts run where none of our packages is installed.
    "trainer.foreign": frozenset(),
    "trainer.stand_ins.torchaudio": frozenset(),
    "trainer.compare": _TRAINED | _CORE | {"trajectory_records.viewer"},
    "trainer.reproduce": _TRAINED | {"trainer.compare"},
    "trainer.cli": _TRAINED | {"trainer.compare", "trainer.reproduce"},
    "motab": _CLIENT
    | {
        "proxy",
        "proxy.config",
        "proxy.core",
        "proxy.errors",
        "proxy.options",
        "proxy.probe",
        "proxy.remote_config",
        "proxy.secrets",
        "proxy.serving",
        "proxy.variables",
        "trainer.cli",
    },
    "configs": frozenset(),
    # The harness knows the proxy as a process.
    "benchmarks": frozenset(
        {
            "benchmarks.hostile",
            "benchmarks.scenarios",
            "benchmarks.servers",
            "benchmarks.simulator",
            "proxy.backends.embedded",
            "synth_client.asking",
            "synth_client.files",
            "synth_client.questions",
            "synth_client.runs",
        }
    ),
    # Its prompts are the reproduction's questions, rendered as a model reads them.
    "benchmarks.servers": frozenset(
        {
            "benchmarks",
            "benchmarks.simulator",
            "proxy.backends.base",
            "proxy.backends.tokens",
            "proxy.errors",
            "synth_client.files",
            "trainer.reproduce",
        }
    ),
    # The readers of files and texts are attacked without a proxy.
    "benchmarks.hostile": frozenset(
        {
            "benchmarks",
            "benchmarks.simulator",
            "proxy.backends.base",
            "proxy.backends.tokens",
            "proxy.errors",
            "proxy.yaml_file",
            "synth_client.judging",
        }
    ),
    "benchmarks.scenarios": frozenset({"benchmarks", "benchmarks.simulator", "benchmarks.waiting"}),
    "benchmarks.simulator": frozenset(),
    "benchmarks.waiting": frozenset({"proxy.core", "proxy.engine"}),
}
CORE_MODULES = {"collections", "dataclasses", "math", "random", "typing"}


def test_a_folder_imports_only_what_its_row_allows() -> None:
    assert forbidden_imports(ROOT, ALLOWED) == []


def test_the_core_imports_a_few_standard_modules_only() -> None:
    foreign = {
        name.split(".")[0]
        for module in modules(ROOT, "proxy/core")
        for name in module.imports()
        if not is_within(name, "proxy.core")
    }
    assert foreign == CORE_MODULES
    assert foreign <= sys.stdlib_module_names


def test_no_folder_holds_more_than_sixteen_modules() -> None:
    assert crowded_folders(ROOT, *PACKAGES, "tests") == []


def test_no_file_is_longer_than_four_hundred_lines() -> None:
    assert long_files(ROOT, *PACKAGES, "tests") == []


def test_every_package_says_what_it_is() -> None:
    assert silent_packages(ROOT, *PACKAGES, "tests") == []


def test_no_package_defines_a_class_name_twice() -> None:
    assert repeated_classes(ROOT, *PACKAGES) == []


def test_every_module_named_in_a_string_exists() -> None:
    found = broken_names(ROOT, *PACKAGES, "tests")
    assert [fault for fault in found if not fault.startswith(__name__)] == []


def test_the_packages_are_typed() -> None:
    assert [name for name in TYPED if not (ROOT / name / "py.typed").is_file()] == []


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A small tree that keeps all the rules."""
    for folder in ("proxy", "proxy/core", "proxy/engine"):
        package = tmp_path / folder
        package.mkdir()
        (package / "__init__.py").write_text('"""Says what it is."""\n')
    (tmp_path / "proxy/core/monitor.py").write_text("import math\n")
    (tmp_path / "proxy/engine/runner.py").write_text("from proxy.core.monitor import math\n")
    return tmp_path


def faults(root: Path) -> list[str]:
    found = forbidden_imports(root, ALLOWED)
    checks: tuple[Callable[..., list[str]], ...] = (
        crowded_folders,
        long_files,
        silent_packages,
        repeated_classes,
        broken_names,
    )
    for check in checks:
        found += check(root, "proxy")
    return found


def test_a_tree_that_keeps_the_rules_has_no_faults(house: Path) -> None:
    assert faults(house) == []


@pytest.mark.parametrize(
    ("path", "content", "fault"),
    [
        (
            "proxy/core/late.py",
            "def f() -> None:\n    from proxy.engine.runner import math\n",
            "proxy.core.late imports proxy.engine.runner.math",
        ),
        (
            "proxy/core/late.py",
            "from proxy.engine import runner\n",
            "proxy.core.late imports proxy.engine.runner",
        ),
        (
            "proxy/engine/late.py",
            "import motab.cli\n",
            "proxy.engine.late imports motab.cli",
        ),
        ("proxy/engine/__init__.py", "", "proxy.engine has no docstring"),
        ("proxy/core/long.py", "x = 1\n" * (MAX_LINES + 1), "proxy.core.long has 401 lines"),
        (
            "proxy/core/twice.py",
            "class A:\n    pass\n\n\ndef f() -> None:\n    class A:\n        pass\n",
            "A is a class of proxy.core.twice, proxy.core.twice",
        ),
        (
            "proxy/core/named.py",
            "X = 'proxy.core.gone'\n",
            "proxy.core.named names proxy.core.gone",
        ),
        ("proxy/new/module.py", "", "proxy.new.module belongs to no row of the rule"),
    ],
)
def test_a_broken_rule_is_found(house: Path, path: str, content: str, fault: str) -> None:
    (house / path).parent.mkdir(exist_ok=True)
    (house / path).write_text(content)
    assert fault in faults(house)


def test_a_seventeenth_module_is_found(house: Path) -> None:
    for number in range(MAX_MODULES - 1):
        (house / f"proxy/core/m{number}.py").touch()
    assert faults(house) == []
    (house / "proxy/core/one_more.py").touch()
    assert faults(house) == ["proxy.core holds 17 modules"]
