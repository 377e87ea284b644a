"""Measures what a hostile file or text costs the process that reads it and does nothing else."""

import asyncio
import os
import sys
import time
from asyncio.subprocess import PIPE
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from benchmarks.hostile import reader
from benchmarks.hostile.meter import Row


@dataclass(frozen=True, slots=True)
class FileAttack:
    """A hostile file or text: a function of `reader`."""

    threat: str
    name: str

    async def measure(self, num_bytes: int, code: Path) -> Row:
        """Compare it with a harmless file or text of its size, for the code of that folder."""
        harmless = await _read(self.name, num_bytes, "harmless", code)
        began = time.perf_counter()
        hostile = await _read(self.name, num_bytes, "hostile", code)
        return Row(
            threat=self.threat,
            attack=self.name,
            tried=" ".join((reader.READERS[self.name].__doc__ or "").split()).rstrip("."),
            access="file",
            answer=hostile["answer"],
            seconds=time.perf_counter() - began,
            memory_before_mb=harmless["peak_mb"],
            memory_peak_mb=hostile["peak_mb"],
            processor_s=max(0.0, hostile["cpu_s"] - harmless["cpu_s"]),
            health_worst_ms=None,
            health_p99_ms=None,
            num_unharmed=0,
            num_harmed=0,
        )


async def _read(name: str, num_bytes: int, kind: str, code: Path) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, reader.__file__, name, str(num_bytes), kind),
        cwd=code,
        env={**os.environ, "PYTHONPATH": str(code)},
        stdout=PIPE,
        stderr=PIPE,
    )
    said, words = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"{name} ended with {process.returncode}: {words.decode()}")
    return dict(orjson.loads(said))


_TEMPLATES: Final = "templates without end"
_YAML: Final = "YAML that stands for more than it has"
_RULES: Final = "texts that cost a rule much"
ATTACKS: Final = (
    FileAttack(_TEMPLATES, "loops_in_loops"),
    FileAttack(_TEMPLATES, "doubled_texts"),
    FileAttack(_YAML, "aliases_of_aliases"),
    FileAttack(_YAML, "alias_of_itself"),
    FileAttack(_YAML, "deep_yaml"),
    FileAttack(_RULES, "boxes_in_boxes"),
    FileAttack(_RULES, "signs"),
)
