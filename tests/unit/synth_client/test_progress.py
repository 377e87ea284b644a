import asyncio
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from synth_client.asking.errors import SynthesisError
from synth_client.asking.limiter import Limiter
from synth_client.asking.pool import Failed, Outcome, Pool
from synth_client.errors import OutputError
from synth_client.questions.question import Unit
from synth_client.runs.progress import Progress, Tally, render_progress
from tests.support.records import breached, record_of, several, unbroken
from tests.support.synth_client.client import SYNTHESIS, unit_of
from trajectory_records.record import Record

UNIT = unit_of(SYNTHESIS)
BREACHED = Outcome(UNIT, record_of(breached()))
UNBROKEN = Outcome(UNIT, record_of(unbroken()))
FAILED = Outcome(UNIT, Failed(SynthesisError("no", status=400), 1))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def never(unit: Unit, *, attempt: int) -> Record:
    raise AssertionError


def progress_of(
    tally: Tally, clock: Clock, console: Console | None = None, file: Path | None = None
) -> Progress:
    pool = Pool(never, Limiter(1, 12, start=12), num_workers=12)
    shown = console or Console(file=io.StringIO())
    return Progress(tally, lambda: pool.load, console=shown, file=file, clock=clock)


def test_the_figures_are_of_what_came() -> None:
    tally, clock = Tally(prices={"teacher": 2.0, "student": 1.0}, total=20, num_kept=5), Clock()
    progress = progress_of(tally, clock)
    for outcome in (BREACHED, UNBROKEN, UNBROKEN, FAILED):
        tally.add(outcome)
    for code in (500, 502, 429):
        tally.add_error(SynthesisError("", status=code))
    clock.now = 2.0
    figures = progress.figures()
    assert (figures.total, figures.done, figures.failed) == (20, 8, 1)
    assert figures.trajectories_per_s == 1.5
    assert figures.tokens_per_s == {"student": 60.0, "scored": 48.0, "teacher": 30.0}
    assert figures.breach_rate == pytest.approx(1 / 3)
    assert figures.mean_bifurcation == 2
    assert figures.errors == {"transient": 2, "capacity": 1}
    assert figures.cost == pytest.approx((60 * 2 + 120 * 1) / 1e6)
    assert figures.eta_s == pytest.approx(11 / 2)
    assert figures.concurrency == 12


def test_failed_attempts_cost_what_they_state() -> None:
    tally = Tally(prices={"student": 1.0})
    tally.add_error(SynthesisError("", status=502))
    tally.add_error(SynthesisError("", status=502, spent=record_of(breached()).usage))
    tally.add(BREACHED)
    assert tally.cost() == pytest.approx(2 * 40 / 1e6)


def test_rates_are_of_the_last_minute() -> None:
    tally, clock = Tally(), Clock()
    progress = progress_of(tally, clock)
    for second in range(100):
        clock.now = float(second)
        if second < 30:
            tally.add(UNBROKEN)
        progress.figures()
    figures = progress.figures()
    assert figures.trajectories_per_s == 0
    assert figures.done == 30


def test_trajectories_of_many_minutes_have_an_end_in_sight() -> None:
    tally, clock = Tally(total=40), Clock()
    progress = progress_of(tally, clock)
    for minute in range(1, 21):
        clock.now = 60.0 * minute
        if minute % 2:
            tally.add(UNBROKEN)
        progress.figures()
    assert progress.figures().eta_s == pytest.approx(30 * 120)


def test_what_is_not_known_is_not_zero() -> None:
    clock = Clock()
    progress = progress_of(Tally(), clock)
    clock.now = 1.0
    figures = progress.figures()
    nothing = (figures.total, figures.breach_rate, figures.mean_bifurcation, figures.cost)
    assert nothing == (None, None, None, None)
    assert figures.eta_s is None
    assert "breach rate: -" in figures.line()


async def test_in_a_terminal_there_is_a_live_panel() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    tally, clock = Tally(total=3), Clock()
    progress = progress_of(tally, clock, console)
    clock.now = 1.0
    running = asyncio.create_task(progress.run())
    await asyncio.sleep(0)
    tally.add(BREACHED)
    progress.stop()
    await running
    assert "motab synth" in screen.getvalue()
    assert "1 of 3, 0 failed" in screen.getvalue()


def test_the_panel_shows_every_figure() -> None:
    tally, clock = Tally(total=3, prices={"teacher": 1.0}), Clock()
    progress = progress_of(tally, clock)
    tally.add(BREACHED)
    clock.now = 1.0
    figures = progress.figures()
    console = Console(file=io.StringIO(), width=100, record=True)
    console.print(render_progress(figures))
    shown = console.export_text()
    for label, value in figures.facts():
        assert label in shown
        assert value in shown


async def test_the_file_gets_a_line_of_json_at_the_end_at_least(tmp_path: Path) -> None:
    path = tmp_path / "progress.jsonl"
    tally, clock = Tally(total=1), Clock()
    progress = progress_of(tally, clock, file=path)
    tally.add(UNBROKEN)
    clock.now = 4.0
    progress.stop()
    await progress.run()
    line = json.loads(path.read_text(encoding="utf-8").splitlines()[-1])
    assert (line["seconds"], line["done"], line["total"]) == (4.0, 1, 1)


async def test_a_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    progress = progress_of(Tally(), Clock(), file=tmp_path / "none" / "progress.jsonl")
    with pytest.raises(OutputError, match="No such file or directory"):
        await progress.run()


def test_a_trajectory_of_several_rounds_strayed_once_and_its_first_turn_counts() -> None:
    tally = Tally()
    for fields in (several((3, 1), (1, 1), tail=1), several((1, 2)), unbroken()):
        tally.add(Outcome(UNIT, record_of(fields)))
    figures = progress_of(tally, Clock()).figures()
    assert figures.breach_rate == pytest.approx(2 / 3)
    assert figures.mean_bifurcation == 2.0
