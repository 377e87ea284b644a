"""Asks a few questions through the proxy, with a configuration's own servers and parameters."""

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Final

from pydantic import JsonValue

from motab.answers import JudgedAnswers
from proxy.config import Config, LiteLLMConfig
from proxy.serving.serve import running
from synth_client.asking.client import SynthClient
from synth_client.asking.errors import SynthesisError
from synth_client.judging.verifier import Verifier
from synth_client.questions.dataset import open_dataset
from synth_client.questions.question import BadRow, Question, Synthesis, Unit, units_of
from trajectory_records.record import Message, Record

NUM_QUESTIONS: Final = 5
_RULE: Final = "number"
Say = Callable[[str], None]
# The trial is its own client: nobody else may reach it, and it records and reports nothing.
_SERVER: Final[Mapping[str, Any]] = {
    "host": "127.0.0.1",
    "port": 0,
    "health_port": None,
    "api_keys": (),
    "allowed_hosts": (),
    "records": None,
    "tracing": False,
}


@dataclass(frozen=True, slots=True)
class Trial:
    """The answers of a model, in the order of the questions, and the errors of the others."""

    records: tuple[Record, ...]
    errors: tuple[str, ...]
    seconds: float
    """The time that all questions took together."""


def trial_questions(source: str | None) -> list[Question]:
    """Return the first questions of a file or dataset, or the bundled ones.

    Raises `InputError` for a source that cannot be read.
    """
    if source is None:
        bundled = files("configs") / "doctor_questions.jsonl"
        rows = map(json.loads, bundled.read_text(encoding="utf-8").splitlines())
        return [
            Question(row["id"], (Message(role="user", content=row["question"]),), row["answer"])
            for row in rows
        ]
    rows_of = open_dataset(source, limit=NUM_QUESTIONS).rows()
    return [row for row in rows_of if not isinstance(row, BadRow)]


async def trials(
    config: Config,
    models: Sequence[str],
    params: Mapping[str, JsonValue],
    questions: Sequence[Question],
    say: Say,
) -> dict[str, Trial]:
    """Ask all `models`, one after the other, with these parameters on top of their own.

    `say` hears after every answer how many there are.
    """
    if not models:
        return {}
    with JudgedAnswers(_RULE) as reader:
        async with running(config.with_server(dict(_SERVER)), reader) as base_url:
            return {
                name: await _trial(
                    base_url,
                    Synthesis(model=name, params=params, seed=_seed(config, name)),
                    questions,
                    say,
                )
                for name in models
            }


def _seed(config: Config, name: str) -> int | None:
    """Return a seed, so that a second trial is like the first; not every hosted API takes one."""
    pair = config.models[name]
    upstreams = (config.upstreams[one] for one in (pair.student, pair.teacher))
    return None if any(isinstance(one, LiteLLMConfig) for one in upstreams) else 0


async def _trial(
    base_url: str,
    synthesis: Synthesis,
    questions: Sequence[Question],
    say: Say,
) -> Trial:
    units = [unit for question in questions for unit in units_of(question, synthesis, 1)]
    num_done = 0

    def count() -> None:
        nonlocal num_done
        say(f"{synthesis.model}: {num_done} of {len(units)} questions are answered ...")
        num_done += 1

    async def ask(client: SynthClient, unit: Unit) -> Record:
        try:
            return await client.synthesise(unit)
        finally:
            count()

    count()
    started = time.monotonic()
    async with SynthClient(base_url, synthesis) as client:
        asking = (ask(client, unit) for unit in units)
        answers = await asyncio.gather(*asking, return_exceptions=True)
    seconds = time.monotonic() - started
    records, errors = [], []
    verifier = Verifier(_RULE)
    for unit, answer in zip(units, answers, strict=True):
        if isinstance(answer, Record):
            records.append(verifier.verify(answer))
        elif isinstance(answer, SynthesisError):
            errors.append(f"{unit.question.id}: {answer}")
        else:
            raise answer
    return Trial(tuple(records), tuple(errors), seconds)
