"""Runs the named benchmarks: EvalScope words and judges them, our client asks and counts.

Numbers are compared with published ones, so the prompts and the reading of answers come from a
harness that others use. It lives in its own environment, where `foreign.evalscope_bridge` runs.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import orjson

from synth_client.errors import InputError
from synth_client.judging.verifier import Program
from synth_client.questions.dataset import Cells, Dataset
from trainer.environments import FOREIGN, ScriptFailed, ask_script, python_in
from trainer.errors import HarnessMissing
from trainer.evaluation.benchmark import PLACE, Benchmark, benchmark_of

NAMES: Final = ("aime24", "aime25", "math_500", "gpqa_diamond", "ifeval")
_FOLDER: Final = ".venv-evalscope"
_HINT: Final = (
    "make eval-env in motab's source makes it, or name the Python of an environment with evalscope"
    " by --python or MOTAB_EVALSCOPE_PYTHON"
)
_COLUMNS: Final = ("id", "messages", "answer", "level", "subject")


@dataclass(frozen=True, slots=True)
class Source:
    """One of the `NAMES`, and the place of its problems: the folder `data`, or ModelScope."""

    name: str
    data: Path | None
    limit: int | None


@contextmanager
def named_benchmark(source: Source, asked: Path | None) -> Iterator[Benchmark]:
    """Open a benchmark, whose rule is usable as long as the context lasts. Takes some seconds.

    `asked` is the interpreter to use in place of `.venv-evalscope`'s. Raises `HarnessMissing`, and
    `InputError` if the problems cannot be obtained.
    """
    python = python_in(_FOLDER, asked, missing=HarnessMissing, hint=_HINT)
    with TemporaryDirectory(prefix="motab-") as scratch:
        found = _problems(python, source, Path(scratch))
        problems = found["problems"][: source.limit]
        file = Path(scratch, "problems.jsonl")
        file.write_bytes(
            b"".join(orjson.dumps(one, option=orjson.OPT_APPEND_NEWLINE) for one in problems)
        )
        rule = Program(
            f"evalscope-{found['version']}/{source.name}",
            (*_command(python), "judge", source.name, str(file)),
        )
        weights = {one["id"]: one["weights"] for one in problems}
        dataset = _dataset(source, problems)
        benchmark = benchmark_of(dataset, prompt=PLACE, rule=rule, weights=weights)
        # The problems already contain it.
        yield replace(benchmark, prompt=found["prompt"])


def _command(python: Path) -> tuple[str, ...]:
    # Isolated: neither our packages nor the current folder's are meant for that environment.
    return (str(python), "-I", "-W", "ignore", str(FOREIGN / "evalscope_bridge.py"))


def _problems(python: Path, source: Source, scratch: Path) -> dict[str, Any]:
    """Return the output of `foreign/evalscope_bridge.py` about the problems."""
    folder = [] if source.data is None else [str(source.data.absolute())]
    # A folder's content is read again; EvalScope keeps downloads from a hub in its own cache.
    cache = {} if source.data is None else {"HF_DATASETS_CACHE": str(scratch / "cache")}
    command = [*_command(python), "problems", source.name, *folder]
    try:
        found = ask_script(command, {**os.environ, **cache})
    except OSError as error:
        raise HarnessMissing(f"{python}: {error.strerror}") from error
    except ScriptFailed as error:
        raise HarnessMissing(f"{python}: cannot be used to evaluate: {error.reason}") from error
    if (fault := found.get("error")) is not None:
        if fault.startswith(("ModuleNotFoundError", "ImportError")):
            raise HarnessMissing(f"{python}: cannot be used to evaluate: {fault}")
        place = "ModelScope; --data reads a folder" if source.data is None else source.data
        raise InputError(f"{source.name} cannot be read from {place}: {fault}")
    return found


def _dataset(source: Source, problems: list[Mapping[str, Any]]) -> Dataset:
    cells = [
        Cells(f"row {number}", {name: one[name] for name in _COLUMNS})
        for number, one in enumerate(problems, start=1)
    ]
    return Dataset(
        name=source.name,
        source=source.name,
        cells=lambda: iter(cells),
        count_all=lambda: len(cells),
        limit=source.limit,
    )
