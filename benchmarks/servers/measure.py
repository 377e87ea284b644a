"""Probes the servers, runs every level, and writes the results after each of them."""

import asyncio
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import aiohttp
import orjson
import yaml

from benchmarks.figures import Findings
from benchmarks.lag import Lag
from benchmarks.processes import PAIR, Pair, Served, configuration, connections, proxy
from benchmarks.report import write
from benchmarks.servers.counted import tokens_computed, why_not
from benchmarks.servers.findings import curves, findings, with_simulators
from benchmarks.servers.found import CannotMeasure, Found, Role, find, loop_can_ask
from benchmarks.servers.level import Level, Runner
from benchmarks.servers.prompts import prompts
from benchmarks.servers.side_by_side import measured, num_probed, run_simulators
from synth_client.files.atomic import write_whole

# A level has a warm-up and four parts.
_PARTS: Final = 5


@dataclass(frozen=True, slots=True)
class Wanted:
    """The servers to measure, and how."""

    urls: Mapping[Role, str]
    models: Mapping[Role, str | None]
    """None for the only one that a server has."""
    tokenizers: Mapping[Role, str | None]
    """None for what the servers name."""
    levels: Sequence[int]
    at_least: int
    max_tokens: int
    base_threshold: float
    output: Path
    simulators: bool = False
    """Whether each level is repeated on simulators."""


async def measure(wanted: Wanted) -> dict[str, Findings]:
    """Return the findings by level. Raises `CannotMeasure` with what was wrong."""
    async with connections() as http:
        student, teacher = [await _found(http, role, wanted) for role in ("student", "teacher")]
        pair = Pair(student.served, teacher.served)
        num = sum(_PARTS * max(at_once, wanted.at_least) for at_once in wanted.levels)
        num += sum(map(num_probed, wanted.levels)) if wanted.simulators else 0
        each_once = await prompts(pair, num)
        await _probe(pair, wanted.output)
        conditions = await _conditions(http, student, teacher, wanted)
        async with proxy({PAIR: pair}) as motab:
            runner = Runner(http, pair, motab, each_once, wanted.max_tokens, wanted.base_threshold)
            return await _levels(runner, wanted, conditions)


async def _found(http: aiohttp.ClientSession, role: Role, wanted: Wanted) -> Found:
    found = await find(http, role, wanted.urls[role], wanted.models[role])
    tokenizer = wanted.tokenizers[role] or found.served.tokenizer
    return replace(found, served=replace(found.served, tokenizer=tokenizer))


async def _levels(
    runner: Runner, wanted: Wanted, conditions: Mapping[str, str]
) -> dict[str, Findings]:
    started = time.perf_counter()
    found: dict[str, Findings] = {}
    levels: list[Level] = []
    for at_once in wanted.levels:
        lag = Lag()
        watching = asyncio.create_task(lag.watch())
        try:
            levels.append(await runner.level(at_once, wanted.at_least))
        except* (RuntimeError, aiohttp.ClientError) as errors:
            raise CannotMeasure(f"{at_once} at once: {_first(errors)}") from errors
        finally:
            watching.cancel()
        of_level = findings(levels[-1])
        if wanted.simulators:
            speeds = await measured(runner, levels[-1])
            of_level = with_simulators(
                of_level, await run_simulators(levels[-1], runner.pair, speeds)
            )
            of_level.conditions["simulators"] = speeds.described
        found[f"{at_once} at once"] = of_level
        of_level.conditions.update(conditions)
        of_level.conditions["late wake-ups, p99 ms"] = lag.p99_ms()
        # After each level, because the next may be too much for a server.
        seconds = time.perf_counter() - started
        write(found | {"all": curves(levels)}, wanted.output, quick=False, seconds=seconds)
    return found


def _first(errors: BaseExceptionGroup) -> BaseException:
    first = errors.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


async def _probe(pair: Pair[Served], output: Path) -> None:
    """Run `motab probe`, and keep its report. Raises `CannotMeasure` if the pair cannot work."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.yaml"
        config.write_text(yaml.safe_dump(configuration({PAIR: pair}, folder)), "utf-8")
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "motab", "probe", "--config", str(config), "--json"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        report, said = await process.communicate()
    if not report:
        raise CannotMeasure(f"motab probe failed: {said.decode(errors='replace')[-2000:]}")
    _write(output, report)
    model = orjson.loads(report)["models"][PAIR]
    if not model["ok"]:
        raise CannotMeasure("; ".join(model["reasons"]))


def _write(output: Path, report: bytes) -> None:
    output.mkdir(parents=True, exist_ok=True)
    write_whole(output / "probe.json", report)


async def _conditions(
    http: aiohttp.ClientSession, student: Found, teacher: Found, wanted: Wanted
) -> dict[str, str]:
    pair = Pair(student.served, teacher.served)
    conditions = {
        "student": student.described,
        "teacher": teacher.described,
        "texts": f"at most {wanted.max_tokens} tokens, greedy, each prompt once",
        "with breaches": f"base_threshold {wanted.base_threshold:g}",
    }
    if await tokens_computed(http, pair.teacher) is None:
        conditions["teacher tokens computed"] = f"unknown: {why_not(pair.teacher)}"
    if pair.student.base_url == pair.teacher.base_url:
        conditions["cache"] = "student and teacher are one server, so both fill its cache"
    if not loop_can_ask(pair):
        conditions["published loop"] = "left out: llama.cpp gives no log-probabilities of prompts"
    return conditions
