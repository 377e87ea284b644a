"""Makes the records of a comparison: asks the pair, keeps to the budget, filters and scores."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from synth_client.asking.servers import Servers
from synth_client.errors import InputError
from synth_client.files.atomic import AtomicFile, output_errors
from synth_client.files.record_file import read_records
from synth_client.files.workspace import Workspace
from synth_client.judging.verifier import Verifier
from synth_client.prices import priced_tokens
from synth_client.questions.dataset import Dataset, open_dataset
from synth_client.questions.layout import Columns
from synth_client.questions.question import Synthesis
from synth_client.runs.outputs import Totals
from synth_client.runs.score import Scoring, score_records
from synth_client.runs.session import run_loop
from synth_client.runs.synthesise import Run, synthesise
from synth_client.training_data.filters import Filters
from synth_client.training_data.rewrite import filter_records, verify_records
from trainer.compare.plan import MoneyBudget, Plan, Questions
from trainer.compare.restitch import clean
from trainer.compare.stages import DataStage, ExamplesStage, ScoreStage
from trainer.errors import ServerFailed
from trajectory_records.record import Record

# A round asks for less than the budget seems to allow, because answers differ in length.
_SHARE_OF_THE_REST: Final = 0.9
_CALLS: Final = ("student_calls", "score_calls", "correction_calls")


@dataclass(frozen=True, slots=True)
class DataMaker:
    """Makes the records of a plan's stages."""

    plan: Plan
    api_key: str | None
    console: Console

    def make(self, stage: DataStage) -> dict[str, Any]:
        """Ask the pair. With a budget, ask a part at a time until it is spent."""
        limit = self.plan.questions.limit
        if self.plan.budget is None:
            self._ask(stage, limit)
            return data_facts(read_records(stage.records))
        target, num_before = 0, -1
        wanted = ceil(self.plan.pair.concurrency / stage.tries)
        while True:
            target = target + wanted if limit is None else min(target + wanted, limit)
            self._ask(stage, target)
            costs = list(costs_by_question(read_records(stage.records), self.plan))
            rest = limit_of(self.plan) - sum(costs)
            if rest <= 0 or target == limit or len(costs) == num_before:
                return data_facts(read_records(stage.records))
            num_before = len(costs)
            wanted = self._next(rest, sum(costs) / num_before, stage.tries)

    def _next(self, rest: float, mean: float, tries: int) -> int:
        """Return how many more questions to ask, given what is left and what a question costs."""
        if mean <= 0:
            raise InputError("the records cost nothing by the budget, so it would never be spent")
        at_once = ceil(self.plan.pair.concurrency / tries)
        likely = ceil(rest / mean)
        return likely if likely <= at_once else max(int(likely * _SHARE_OF_THE_REST), at_once)

    def _ask(self, stage: DataStage, limit: int | None) -> None:
        plan = self.plan
        run = Run(
            dataset=questions_of(plan.questions, limit),
            output=stage.records,
            servers=self._servers(),
            synthesis=Synthesis(
                model=plan.pair.model,
                params=stage.params,
                temperature=plan.sampling.temperature,
                top_p=plan.sampling.top_p,
                max_tokens=plan.sampling.max_tokens,
                seed=stage.seed,
                timeout_s=plan.sampling.timeout,
            ),
            num_samples=stage.tries,
            prices=plan.prices,
            verify=plan.questions.verify,
        )
        totals = run_loop(synthesise(run, self.console))
        check_totals(totals, stage.records, allowed=plan.questions.allowed_failures)

    def select(self, stage: ExamplesStage) -> dict[str, Any]:
        """Write the records that are learned, from those that were made."""
        made, output = stage.data.records, stage.records
        budget = None if self.plan.budget is None else limit_of(self.plan)
        affordable = stage.folder / "affordable.jsonl"
        with output_errors(affordable), AtomicFile(affordable) as file:
            for record in _within(read_records(made), budget, self.plan):
                chosen = clean(record) if stage.is_clean else record
                file.file.write(chosen.to_json_line())
            file.publish()
        if stage.is_clean:
            with Verifier(self.plan.questions.verify) as verifier:
                verifier.start()
                verify_records(affordable, affordable, verifier)
        kept = filter_records(affordable, output, None, Filters(stage.filters))
        return {"num_kept": kept.num_kept, "dropped": dict(kept.dropped)} | example_facts(
            read_records(output)
        )

    def score(self, stage: ScoreStage) -> dict[str, Any]:
        """Add the log-probabilities under both models."""
        job = Scoring(
            source=stage.examples.records,
            output=stage.records,
            servers=self._servers(),
            model=self.plan.pair.model,
            timeout_s=self.plan.sampling.timeout,
        )
        totals = run_loop(score_records(job, self.console))
        check_totals(totals, stage.records)
        return {"num_records": totals.num_records}

    def _servers(self) -> Servers:
        pair = self.plan.pair
        return Servers(
            base_urls=(pair.base_url,), api_key=self.api_key, concurrency=pair.concurrency
        )


def questions_of(questions: Questions, limit: int | None) -> Dataset:
    """Open the questions of a plan."""
    return open_dataset(
        questions.source,
        limit=limit,
        split=questions.split,
        subset=questions.subset,
        columns=Columns(questions.question_column, questions.answer_column, questions.id_column),
    )


def limit_of(plan: Plan) -> float:
    """Return what the plan's budget allows, in tokens or in money."""
    if isinstance(plan.budget, MoneyBudget):
        return plan.budget.amount
    return 0.0 if plan.budget is None else float(plan.budget.teacher_tokens)


def tokens_of(record: Record) -> Counter[str]:
    """Return the tokens of a record by the kinds that have prices, failed attempts included."""
    tokens = Counter(priced_tokens(record.usage))
    if record.wasted is not None:
        tokens.update(priced_tokens(record.wasted))
    return tokens


def cost_of(record: Record, plan: Plan) -> float:
    """Return what a record cost, by the budget's measure."""
    tokens = tokens_of(record)
    if isinstance(plan.budget, MoneyBudget):
        return sum(num * plan.prices.get(kind, 0.0) / 1e6 for kind, num in tokens.items())
    return float(tokens["teacher"])


def costs_by_question(records: Iterable[Record], plan: Plan) -> Iterator[float]:
    """Yield the cost of each question, which all its samples share."""
    name: str | None = None
    cost = 0.0
    for record in records:
        if name is not None and record.id != name:
            yield cost
            cost = 0.0
        name, cost = record.id, cost + cost_of(record, plan)
    if name is not None:
        yield cost


def _within(records: Iterable[Record], budget: float | None, plan: Plan) -> Iterator[Record]:
    """Yield the records that the budget pays for, in order; the last may be paid in part."""
    spent = 0.0
    for record in records:
        if budget is not None and spent >= budget:
            return
        spent += cost_of(record, plan)
        yield record


def data_facts(records: Iterable[Record]) -> dict[str, Any]:
    """Return the sums from which costs are shown and estimated."""
    tokens: Counter[str] = Counter()
    questions: set[str] = set()
    num = calls = 0
    seconds = 0.0
    for record in records:
        num += 1
        questions.add(record.id)
        tokens.update(tokens_of(record))
        calls += sum(getattr(record.usage.motab, name) for name in _CALLS)
        seconds += record.seconds
    return {
        "num_records": num,
        "num_questions": len(questions),
        "tokens": dict(tokens),
        "calls": calls,
        "answer_seconds": seconds,
    }


def example_facts(records: Iterable[Record]) -> dict[str, Any]:
    """Return how long the examples are, in tokens."""
    tokens = [
        (record.usage.prompt_tokens or 0) + (record.usage.completion_tokens or 0)
        for record in records
    ]
    return {"example_tokens": sum(tokens)}


def check_totals(totals: Totals, records: Path, *, allowed: float = 0.0) -> None:
    """Raise `ServerFailed` where a larger share than that of the questions failed."""
    num_all = totals.num_records + totals.num_failed
    if totals.num_failed > allowed * num_all:
        raise ServerFailed(
            f"{totals.num_failed} of {num_all} questions failed;"
            f" {Workspace(records).failed} says why, and the same command tries them again"
        )
