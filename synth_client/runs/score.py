"""Runs `motab score`: adds both models' token log-probabilities to every record."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import cast

import orjson
from pydantic import ValidationError
from rich.console import Console

from synth_client.asking.client import SynthClient
from synth_client.asking.pool import Pool
from synth_client.asking.servers import Servers
from synth_client.errors import OutputError
from synth_client.files.journal import Journal
from synth_client.files.record_file import read_records
from synth_client.files.workspace import Manifest, Workspace, open_workspace
from synth_client.questions.question import ScoringUnit, Synthesis, Unit, scoring_unit
from synth_client.runs.outputs import Totals, journalled, write_lines
from synth_client.runs.progress import Tally
from synth_client.runs.session import Session, run_session
from trajectory_records.complaints import complaints_of
from trajectory_records.parts import TokenLogprobs
from trajectory_records.record import Record


@dataclass(frozen=True, slots=True, kw_only=True)
class Scoring:
    """All settings of a run. `timeout_s` bounds the silence between two reads, in seconds."""

    source: Path
    output: Path
    servers: Servers
    model: str
    timeout_s: float = 3600.0
    fresh: bool = False

    def manifest(self) -> Manifest:
        """Return the settings that a journal is bound to; the input may change."""
        identity = {"command": "score", "model": self.model}
        return Manifest(identity=dict(identity), extent={}, motab_version=version("motab"))


async def score_records(job: Scoring, console: Console) -> Totals:
    """Score the records that have no scores yet, then write the final files.

    Signals and errors are as in `synthesise`.
    """
    with open_workspace(job.output, job.manifest(), fresh=job.fresh) as workspace:
        return await run_session(
            workspace, lambda journal: ScoringSession(job, journal, workspace, console)
        )


class ScoringSession(Session):
    """Asks for the token log-probabilities of every record and adds them to it."""

    def __init__(
        self, job: Scoring, journal: Journal, workspace: Workspace, console: Console
    ) -> None:
        synthesis = Synthesis(model=job.model, timeout_s=job.timeout_s)
        tally = Tally(counts_trajectories=False)
        super().__init__(journal, job.servers, synthesis, tally, console)
        self._job, self._workspace = job, workspace

    def _units(self) -> Iterator[ScoringUnit]:
        for record in read_records(self._job.source):
            yield scoring_unit(record, self._job.model)

    def _count_units(self) -> int:
        return sum(1 for _ in read_records(self._job.source))

    def _executor_of(self, client: SynthClient) -> Pool:
        async def ask(unit: Unit, *, attempt: int) -> Record:
            return await client.score(unit, cast("ScoringUnit", unit).record, attempt=attempt)

        return self._pool_of(ask)

    async def _content_of(self, record: Record) -> bytes:
        fields = record.model_dump(include={"token_logprobs"})
        return orjson.dumps(fields["token_logprobs"])

    def _write_final(self) -> Totals:
        def lines() -> Iterator[tuple[bytes, bool]]:
            for unit in self._units():
                self._stop_if_asked()
                yield self._line(unit)

        return write_lines(self._workspace, lines())

    def _line(self, unit: ScoringUnit) -> tuple[bytes, bool]:
        """Return the line of a record, and whether it was scored."""
        content, is_scored = journalled(unit, self._journal, "record")
        if not is_scored:
            return content, False
        try:
            logprobs = TokenLogprobs.model_validate_json(content)
        except ValidationError as error:
            raise OutputError(
                f"the journal's entry holds no scores: {complaints_of(error)}"
            ) from error
        return unit.record.model_copy(update={"token_logprobs": logprobs}).to_json_line(), True

    def _describe_done(self, num_done: int) -> str:
        return "1 record is scored" if num_done == 1 else f"{num_done:,} records are scored"
