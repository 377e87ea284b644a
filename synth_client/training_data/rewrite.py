"""Rewrites a records file: filtered, or judged again."""

from collections import Counter, deque
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from synth_client.files.atomic import AtomicFile, output_errors
from synth_client.files.record_file import read_records
from synth_client.judging.verifier import Verifier
from synth_client.training_data.filters import Filters, Kept
from trajectory_records.record import Record

_AHEAD_OF_A_WORKER: Final = 4


@dataclass(slots=True)
class Verdicts:
    """Counts of the verdicts; `faults` counts the records that could not be judged, by reason."""

    num_right: int = 0
    num_wrong: int = 0
    num_unknown: int = 0
    faults: Counter[str] = field(default_factory=Counter)

    def add(self, record: Record) -> None:
        fault = None if record.verification is None else record.verification.fault
        if fault is not None:
            self.faults[fault] += 1
        elif record.correct is None:
            self.num_unknown += 1
        elif record.correct:
            self.num_right += 1
        else:
            self.num_wrong += 1


def filter_records(source: Path, output: Path, dropped: Path | None, filters: Filters) -> Kept:
    """Write the records that pass to `output`, and the others to `dropped` if it is given.

    Both may be the source. An empty `dropped` is removed.
    """
    kept = Kept()
    with ExitStack() as stack, output_errors(output):
        good = stack.enter_context(AtomicFile(output))
        bad = None if dropped is None else stack.enter_context(AtomicFile(dropped))
        for record, passes in filters.split(lambda: read_records(source), kept):
            if passes:
                good.file.write(record.to_json_line())
            elif bad is not None:
                bad.file.write(record.to_json_line())
        # The dropped records first: whoever sees the new file can find the records missing from it.
        if bad is not None:
            bad.publish_unless_empty()
        good.publish()
    return kept


def verify_records(source: Path, output: Path, verifier: Verifier) -> Verdicts:
    """Write the records of `source` to `output` (may be the same), with answers judged again."""
    verdicts = Verdicts()
    ahead = _AHEAD_OF_A_WORKER * verifier.num_workers
    pending: deque[Future[Record]] = deque()
    with output_errors(output), AtomicFile(output) as rewritten:

        def write(future: Future[Record]) -> None:
            record = future.result()
            verdicts.add(record)
            rewritten.file.write(record.to_json_line())

        for record in read_records(source):
            pending.append(verifier.submit(record))
            if len(pending) > ahead:
                write(pending.popleft())
        while pending:
            write(pending.popleft())
        rewritten.publish()
    return verdicts
