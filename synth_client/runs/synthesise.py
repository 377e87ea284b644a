"""One run of `motab synth`: from the input to the final files."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Final, Protocol

import orjson
from pydantic import JsonValue
from rich.console import Console

from synth_client.asking.client import SynthClient
from synth_client.asking.limiter import Limiter
from synth_client.asking.pool import Failed, Load, Outcome, Pool
from synth_client.cluster.actors import WorkerSettings
from synth_client.cluster.executor import Cluster, Fleet
from synth_client.errors import ClientError, Interrupted, RunAborted
from synth_client.files.journal import FAILURE, RECORD, Entry, Journal, open_journal
from synth_client.files.workspace import Manifest, Workspace, open_workspace
from synth_client.judging.verifier import Limits, Program, Verifier
from synth_client.questions.dataset import BadRow, Dataset
from synth_client.questions.question import Synthesis, Unit
from synth_client.record import Record
from synth_client.runs.failed_rows import failed_unit
from synth_client.runs.outputs import Totals, work_of, write_final
from synth_client.runs.progress import Progress, Tally
from synth_client.runs.session import beside, signals
from synth_client.training_data.filters import Filters
from synth_client.training_data.rewrite import filter_records

_log = logging.getLogger(__name__)

_MAX_WARNINGS: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Everything that a run is told. `concurrency` is the most that may be under way.

    `verify` is the rule by which answers are judged. It is no part of what a journal belongs to:
    records that were judged by another are judged again in the end.
    """

    dataset: Dataset
    output: Path
    base_urls: tuple[str, ...]
    synthesis: Synthesis
    num_samples: int = 1
    concurrency: int = 64
    min_concurrency: int = 1
    api_key: str | None = None
    cluster: Cluster | None = None
    """None runs everything in this process."""
    fresh: bool = False
    prices: Mapping[str, float] = field(default_factory=dict)
    progress_file: Path | None = None
    verify: str | Program
    verify_limits: Limits = field(default_factory=Limits)
    filters: Filters = field(default_factory=lambda: Filters(()))

    def manifest(self) -> Manifest:
        """What of it a journal belongs to, and what may grow."""
        synthesis = self.synthesis
        return Manifest(
            identity={
                "input": self.dataset.name,
                "model": synthesis.model,
                "plain": synthesis.plain,
                "temperature": synthesis.temperature,
                "top_p": synthesis.top_p,
                "max_tokens": synthesis.max_tokens,
                "seed": synthesis.seed,
                "params": dict(synthesis.params),
            },
            extent={"n": self.num_samples, "limit": self.dataset.limit},
            motab_version=version("motab"),
        )


async def synthesise(run: Run, console: Console) -> Totals:
    """Do what is not done yet, then write the final files.

    The first SIGINT or SIGTERM lets what is under way finish, the second stops at once; then
    `Interrupted` is raised. Raises `ClientError` for all else that ends a run.
    """
    with open_workspace(run.output, run.manifest(), fresh=run.fresh) as workspace:
        with Verifier(run.verify, limits=run.verify_limits) as verifier:
            await asyncio.to_thread(verifier.start)
            totals = await _in_session(run, workspace, verifier, console)
        return await asyncio.to_thread(_filtered, workspace, run.filters, totals)


def _filtered(workspace: Workspace, filters: Filters, totals: Totals) -> Totals:
    """What the journal has stays there, so that another filter takes no new answers."""
    if not filters.names:
        workspace.dropped.unlink(missing_ok=True)
        return totals
    kept = filter_records(workspace.output, workspace.output, workspace.dropped, filters)
    return replace(totals, num_records=kept.num_kept, kept=kept)


async def _in_session(
    run: Run, workspace: Workspace, verifier: Verifier, console: Console
) -> Totals:
    session: _Session | None = None
    try:
        async with open_journal(workspace.journal) as journal:
            session = _Session(run, journal, verifier)
            with signals(session.on_signal):
                return await session.run(workspace, console)
    except Interrupted:
        raise
    except ClientError:
        if session is not None:
            session.tell_what_stays()
        raise


class Executor(Protocol):
    """What works units off; see `Pool` and `Fleet`."""

    @property
    def load(self) -> Load: ...

    def drain(self) -> None: ...

    async def run(
        self, units: Iterator[Unit], deliver: Callable[[Outcome], Awaitable[None]]
    ) -> None: ...


class _Session:
    """From the opening of the journal to its end."""

    def __init__(self, run: Run, journal: Journal, verifier: Verifier) -> None:
        self._run, self._journal, self._verifier = run, journal, verifier
        self._tally = Tally(prices=run.prices)
        self._taken: set[bytes] = set()
        """Keys of units that the pool has and the journal has not."""
        self._setting: dict[str, JsonValue] | None = None
        self._num_bad_rows = self._num_signals = 0
        self._task = asyncio.current_task()
        self._executor: Executor | None = None

    def on_signal(self) -> None:
        self._num_signals += 1
        if self._num_signals == 1:
            executor = self._executor
            num_active = 0 if executor is None else executor.load.num_active
            _log.warning("finishing the %d under way; signal again to stop at once", num_active)
            if executor is not None:
                executor.drain()
        elif self._task is not None:
            self._task.cancel()

    async def run(self, workspace: Workspace, console: Console) -> Totals:
        try:
            # In a thread: a long journal's units are read past before the first that is not done.
            left = self._left()
            first = await asyncio.to_thread(next, left, None)
            if first is not None:
                await self._ask_all(chain([first], left), workspace, console)
            return await asyncio.to_thread(
                write_final,
                self._work(),
                self._journal,
                workspace,
                self._verifier,
                should_stop=lambda: self._num_signals > 0,
            )
        except asyncio.CancelledError as error:
            if self._num_signals < 2:
                raise
            raise Interrupted(f"stopped at once; {self._how_to_go_on()}") from error

    async def _ask_all(self, units: Iterator[Unit], workspace: Workspace, console: Console) -> None:
        run = self._run
        client = SynthClient(
            run.base_urls, run.synthesis, api_key=run.api_key, max_connections=run.concurrency
        )
        async with client:
            await client.check()
            self._executor = executor = self._executor_of(client, workspace)
            if self._num_signals:
                executor.drain()
            progress = Progress(
                self._tally, lambda: executor.load, console=console, file=run.progress_file
            )
            await beside(
                [progress.run(), self._count_rows()],
                executor.run(units, self._deliver),
                progress.stop,
            )
        if self._num_signals:
            raise Interrupted(f"stopped; {self._how_to_go_on()}")

    def tell_what_stays(self) -> None:
        """For a run that came to an end with an error of its own."""
        if self._tally.num_done:
            _log.info("%s", self._how_to_go_on())

    def _executor_of(self, client: SynthClient, workspace: Workspace) -> "Executor":
        run = self._run
        if run.cluster is None:
            limiter = Limiter(run.min_concurrency, run.concurrency)
            return Pool(
                client.synthesise,
                limiter,
                num_workers=run.concurrency,
                on_error=self._tally.add_error,
            )
        asking = WorkerSettings(
            base_urls=run.base_urls,
            synthesis=run.synthesis,
            api_key=run.api_key,
            concurrency=run.concurrency,
            min_concurrency=run.min_concurrency,
        )
        return Fleet(run.cluster, asking, workspace.units, on_error=self._tally.add_error)

    def _how_to_go_on(self) -> str:
        done = self._tally.num_kept + self._tally.num_done
        are_done = "1 trajectory is done" if done == 1 else f"{done:,} trajectories are done"
        return f"{are_done}, and the same command goes on"

    def _work(self) -> Iterator[Unit | BadRow]:
        return work_of(self._run.dataset, self._run.synthesis, self._run.num_samples)

    def _left(self) -> Iterator[Unit]:
        """The units that are neither done nor under way."""
        for item in self._work():
            if self._num_signals:
                return
            if isinstance(item, BadRow):
                self._warn(item)
                self._tally.num_failed += self._run.num_samples
            elif item.key in self._taken or self._journal.get(item.key) is not None:
                self._tally.num_kept += 1
            else:
                self._taken.add(item.key)
                yield item

    def _warn(self, row: BadRow) -> None:
        self._num_bad_rows += 1
        if self._num_bad_rows <= _MAX_WARNINGS:
            _log.warning("%s, %s: %s", self._run.dataset.source, row.place, row.fault)
        if self._num_bad_rows == _MAX_WARNINGS:
            _log.warning("further bad rows are only told in the file of failed rows")

    async def _count_rows(self) -> None:
        num_rows = await asyncio.to_thread(self._run.dataset.count)
        self._tally.total = None if num_rows is None else num_rows * self._run.num_samples

    async def _deliver(self, outcome: Outcome) -> None:
        unit, result = outcome.unit, outcome.result
        if unit.key not in self._taken:
            return  # done again after its worker was lost
        if isinstance(result, Failed):
            failed = failed_unit(unit, result.error, result.attempts)
            entry = Entry(unit.key, FAILURE, failed.to_json_line().rstrip(b"\n"))
        else:
            self._check_setting(result)
            record = await self._verifier.verified(result)
            entry = Entry(unit.key, RECORD, record.to_json_line().rstrip(b"\n"))
        await self._journal.append(entry)
        self._taken.discard(unit.key)
        self._tally.add(outcome)

    def _check_setting(self, record: Record) -> None:
        """What the proxy adds of its own must stay the same, or the records would not match."""
        if self._run.synthesis.plain:
            return
        here = _setting(record.model_dump(include={"method", "scoring", "params", "models"}))
        if self._setting is None:
            first = self._journal.first
            kept = here if first is None else _setting(orjson.loads(self._journal.read(first)))
            self._setting = kept
        for name, value in here.items():
            if self._setting.get(name) != value:
                raise RunAborted(
                    f"the proxy's settings have changed since the run began: {name} was"
                    f" {self._setting.get(name)!r} and is {value!r}"
                )


def _setting(fields: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    found: dict[str, JsonValue] = {name: fields[name] for name in ("method", "scoring")}
    for part in ("params", "models"):
        inner = fields[part]
        if isinstance(inner, dict):
            found |= {f"{part}.{name}": value for name, value in inner.items()}
    return found
