"""Runs `motab synth`, from the input to the final files."""

import asyncio
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Final

import orjson
from pydantic import JsonValue
from rich.console import Console

from synth_client.asking.client import SynthClient
from synth_client.asking.servers import Servers
from synth_client.cluster.actors import WorkerSettings
from synth_client.cluster.executor import Cluster, Fleet
from synth_client.errors import RunAborted
from synth_client.files.journal import Journal
from synth_client.files.workspace import Manifest, Workspace, open_workspace
from synth_client.judging.verifier import Limits, Program, Verifier
from synth_client.questions.dataset import Dataset
from synth_client.questions.question import BadRow, Synthesis, Unit, units_of
from synth_client.runs.outputs import Totals, write_final
from synth_client.runs.progress import Tally
from synth_client.runs.session import Executor, Session, run_session
from synth_client.training_data.filters import Filters
from synth_client.training_data.rewrite import filter_records
from trajectory_records.record import Record

_log = logging.getLogger(__name__)

_MAX_WARNINGS: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """All settings of a run.

    `verify` is the rule that judges answers. A journal is not bound to it: the final files hold
    records judged by the present rule.
    """

    dataset: Dataset
    output: Path
    servers: Servers
    synthesis: Synthesis
    num_samples: int = 1
    cluster: Cluster | None = None
    """None runs everything in this process."""
    fresh: bool = False
    prices: Mapping[str, float] = field(default_factory=dict)
    progress_file: Path | None = None
    verify: str | Program
    verify_limits: Limits = field(default_factory=Limits)
    filters: Filters = field(default_factory=lambda: Filters(()))

    def manifest(self) -> Manifest:
        """Return the settings that a journal is bound to, and those that may grow."""
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
                # Earlier versions asked sample i of every question with seed + i.
                **({} if synthesis.seed is None else {"seeds": "by row"}),
                # Manifests of earlier versions do not have it.
                **({"fields": dict(synthesis.fields)} if synthesis.fields else {}),
            },
            extent={"n": self.num_samples, "limit": self.dataset.limit},
            motab_version=version("motab"),
        )


async def synthesise(run: Run, console: Console) -> Totals:
    """Ask what has not been asked yet, then write the final files.

    The first SIGINT or SIGTERM lets the requests under way finish, the second stops at once; then
    `Interrupted` is raised. Raises `ClientError` for everything else that ends a run.
    """
    with open_workspace(run.output, run.manifest(), fresh=run.fresh) as workspace:
        with Verifier(run.verify, limits=run.verify_limits) as verifier:
            await asyncio.to_thread(verifier.start)
            totals = await run_session(
                workspace,
                lambda journal: SynthesisSession(run, journal, workspace, verifier, console),
            )
        return await asyncio.to_thread(_filtered, workspace, run.filters, totals)


def _filtered(workspace: Workspace, filters: Filters, totals: Totals) -> Totals:
    """Filter the output; the journal keeps every record, so another filter asks nothing again."""
    if not filters.names:
        workspace.dropped.unlink(missing_ok=True)
        return totals
    kept = filter_records(workspace.output, workspace.output, workspace.dropped, filters)
    return replace(totals, num_records=kept.num_kept, kept=kept)


class SynthesisSession(Session):
    """Asks every row of a dataset for its samples and judges the answers."""

    def __init__(
        self,
        run: Run,
        journal: Journal,
        workspace: Workspace,
        verifier: Verifier,
        console: Console,
    ) -> None:
        super().__init__(
            journal,
            run.servers,
            run.synthesis,
            Tally(prices=run.prices),
            console,
            progress_file=run.progress_file,
        )
        self._run, self._workspace, self._verifier = run, workspace, verifier
        self._setting: dict[str, JsonValue] | None = None
        self._num_bad_rows = 0

    def _units(self) -> Iterator[Unit]:
        for item in self._units_and_bad_rows():
            if isinstance(item, BadRow):
                self._warn(item)
                self._tally.num_failed += self._run.num_samples
            else:
                yield item

    def _units_and_bad_rows(self) -> Iterator[Unit | BadRow]:
        """Yield all units in order, and in their places the rows that cannot be asked."""
        run = self._run
        for row in run.dataset.rows():
            if isinstance(row, BadRow):
                yield row
            else:
                yield from units_of(row, run.synthesis, run.num_samples)

    def _warn(self, row: BadRow) -> None:
        self._num_bad_rows += 1
        if self._num_bad_rows <= _MAX_WARNINGS:
            _log.warning("%s, %s: %s", self._run.dataset.source, row.place, row.fault)
        if self._num_bad_rows == _MAX_WARNINGS:
            _log.warning("the file of failed rows lists all further bad rows")

    def _count_units(self) -> int | None:
        num_rows = self._run.dataset.count()
        return None if num_rows is None else num_rows * self._run.num_samples

    def _executor_of(self, client: SynthClient) -> Executor:
        run = self._run
        if run.cluster is None:
            return self._pool_of(client.synthesise)
        settings = WorkerSettings(servers=run.servers, synthesis=run.synthesis)
        return Fleet(run.cluster, settings, self._workspace.units, on_error=self._tally.add_error)

    async def _content_of(self, record: Record) -> bytes:
        self._check_setting(record)
        verified = await self._verifier.verified(record)
        return verified.to_json_line().rstrip(b"\n")

    def _write_final(self) -> Totals:
        return write_final(
            self._units_and_bad_rows(),
            self._journal,
            self._workspace,
            self._verifier,
            stop_if_asked=self._stop_if_asked,
        )

    def _describe_done(self, num_done: int) -> str:
        return "1 trajectory is done" if num_done == 1 else f"{num_done:,} trajectories are done"

    def _check_setting(self, record: Record) -> None:
        """Raise `RunAborted` if the proxy's own settings differ from those of earlier records."""
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
    setting: dict[str, JsonValue] = {name: fields[name] for name in ("method", "scoring")}
    for part in ("params", "models"):
        inner = fields[part]
        if isinstance(inner, dict):
            setting |= {f"{part}.{name}": value for name, value in inner.items()}
    return setting
