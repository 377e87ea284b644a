"""One run of `motab score`: both models' token log-probabilities, put into every record."""

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import cast

import orjson
from pydantic import ValidationError
from rich.console import Console

from synth_client.asking.client import SynthClient
from synth_client.asking.limiter import Limiter
from synth_client.asking.pool import Failed, Outcome, Pool
from synth_client.errors import InputError, Interrupted, OutputError
from synth_client.files.journal import FAILURE, RECORD, Entry, Journal, open_journal
from synth_client.files.record_file import read_records
from synth_client.files.workspace import Manifest, Workspace, open_workspace
from synth_client.questions.question import ScoringUnit, Synthesis, Unit, scoring_unit
from synth_client.record import Record, TokenLogprobs, faults_of
from synth_client.runs.failed_rows import failed_unit, read_failed
from synth_client.runs.outputs import Totals, write_lines
from synth_client.runs.progress import Progress, Tally
from synth_client.runs.session import beside, signals

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scoring:
    """Everything that a run is told. `concurrency` is the most that may be under way.

    `timeout_s` bounds the silence between two reads, in seconds.
    """

    source: Path
    output: Path
    base_urls: tuple[str, ...]
    model: str
    concurrency: int = 16
    min_concurrency: int = 1
    api_key: str | None = None
    timeout_s: float = 3600.0
    fresh: bool = False

    def manifest(self) -> Manifest:
        """The journal knows records by what is asked of them, so the input may change."""
        identity = {"command": "score", "model": self.model}
        return Manifest(identity=dict(identity), extent={}, motab_version=version("motab"))


async def score_records(job: Scoring, console: Console) -> Totals:
    """Score what is not scored yet, then write the final files.

    Signals and errors are as in `run.synthesise`.
    """
    with open_workspace(job.output, job.manifest(), fresh=job.fresh) as workspace:
        async with open_journal(workspace.journal) as journal:
            session = _Session(job, journal)
            with signals(session.on_signal):
                return await session.run(workspace, console)


class _Session:
    """From the opening of the journal to its end."""

    def __init__(self, job: Scoring, journal: Journal) -> None:
        self._job, self._journal = job, journal
        self._tally = Tally()
        self._taken: set[bytes] = set()
        """Keys of units that the pool has and the journal has not."""
        self._num_signals = 0
        self._task = asyncio.current_task()
        self._pool: Pool | None = None

    def on_signal(self) -> None:
        self._num_signals += 1
        if self._num_signals > 1:
            if self._task is not None:
                self._task.cancel()
            return
        _log.warning("finishing what is under way; signal again to stop at once")
        if self._pool is not None:
            self._pool.drain()

    async def run(self, workspace: Workspace, console: Console) -> Totals:
        try:
            # In a thread: what is done is read past before the first that is not.
            left = self._left()
            first = await asyncio.to_thread(next, left, None)
            if first is not None:
                await self._score_all(chain([first], left), console)
            self._stop_if_asked()
            return await asyncio.to_thread(self._write_final, workspace)
        except asyncio.CancelledError as error:
            if not self._num_signals:
                raise
            raise Interrupted(f"stopped at once; {self._how_to_go_on()}") from error

    async def _score_all(self, units: Iterator[ScoringUnit], console: Console) -> None:
        job = self._job
        asking = Synthesis(model=job.model, timeout_s=job.timeout_s)
        client = SynthClient(
            job.base_urls, asking, api_key=job.api_key, max_connections=job.concurrency
        )

        async def ask(unit: Unit, *, attempt: int) -> Record:
            return await client.score(unit, cast("ScoringUnit", unit).record, attempt=attempt)

        async with client:
            await client.check()
            limiter = Limiter(job.min_concurrency, job.concurrency)
            self._pool = pool = Pool(
                ask, limiter, num_workers=job.concurrency, on_error=self._tally.add_error
            )
            if self._num_signals:
                pool.drain()
            progress = Progress(self._tally, lambda: pool.load, console=console, file=None)
            await beside(
                [progress.run(), self._count()], pool.run(units, self._deliver), progress.stop
            )

    def _left(self) -> Iterator[ScoringUnit]:
        """The units that are neither done nor under way."""
        for unit in self._units():
            if self._num_signals:
                return
            if unit.key in self._taken or self._journal.get(unit.key) is not None:
                self._tally.num_kept += 1
            else:
                self._taken.add(unit.key)
                yield unit

    def _units(self) -> Iterator[ScoringUnit]:
        for record in read_records(self._job.source):
            yield scoring_unit(record, self._job.model)

    async def _count(self) -> None:
        def number() -> int:
            return sum(1 for _ in read_records(self._job.source))

        self._tally.total = await asyncio.to_thread(number)

    async def _deliver(self, outcome: Outcome) -> None:
        unit, result = outcome.unit, outcome.result
        if isinstance(result, Failed):
            failed = failed_unit(unit, result.error, result.attempts)
            entry = Entry(unit.key, FAILURE, failed.to_json_line().rstrip(b"\n"))
            self._tally.num_failed += 1
        else:
            told = result.model_dump(include={"token_logprobs"})["token_logprobs"]
            entry = Entry(unit.key, RECORD, orjson.dumps(told))
            self._tally.num_done += 1
        await self._journal.append(entry)
        self._taken.discard(unit.key)

    def _write_final(self, workspace: Workspace) -> Totals:
        def lines() -> Iterator[tuple[bytes, bool]]:
            for unit in self._units():
                self._stop_if_asked()
                yield self._line(unit)

        return write_lines(workspace, lines())

    def _line(self, unit: ScoringUnit) -> tuple[bytes, bool]:
        """What is written of a record, and whether it was scored."""
        place = self._journal.get(unit.key)
        if place is None:
            raise InputError(
                f"record {unit.record.id} came into the input while the run was going on;"
                " run the same command again"
            )
        content = self._journal.read(place)
        if place.kind != RECORD:
            return read_failed(content, unit).to_json_line(), False
        try:
            told = TokenLogprobs.model_validate_json(content)
        except ValidationError as error:
            raise OutputError(f"the journal holds no scores: {faults_of(error)}") from error
        return unit.record.model_copy(update={"token_logprobs": told}).to_json_line(), True

    def _stop_if_asked(self) -> None:
        if self._num_signals:
            raise Interrupted(f"stopped; {self._how_to_go_on()}")

    def _how_to_go_on(self) -> str:
        done = self._tally.num_kept + self._tally.num_done
        return f"{done:,} record(s) are scored, and the same command goes on"
