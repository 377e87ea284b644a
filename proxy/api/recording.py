"""Makes records of finished trajectories and hands them to the file of records."""

import asyncio
import logging
from dataclasses import dataclass, field, replace
from os import urandom

from pydantic import ValidationError

from proxy import __version__
from proxy.api.choices import Attempt
from proxy.api.schema import GenerationRequest
from proxy.api.shapes import Head, trace
from proxy.backends.base import Question
from proxy.engine.usage import Outcome
from proxy.engine.usage import Usage as Spent
from proxy.errors import MotabError, RecordNotWritten
from proxy.options import Options
from trajectory_records.appender import Appender, Problem
from trajectory_records.parts import Chosen, LimitedBy
from trajectory_records.record import (
    Message,
    Models,
    MotabUsage,
    Record,
    Usage,
)
from trajectory_records.steps import Breach, Span, StepRecord

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Recording:
    """The records of one request; none if `appender` is None."""

    appender: Appender | None
    head: Head
    request_id: str
    questions: tuple[Question, ...]
    request: GenerationRequest
    options: Options
    models: dict[str, str | None]
    """The models' own names."""
    _pending: list[asyncio.Future[Problem]] = field(init=False, default_factory=list)
    _fault: ValidationError | None = field(init=False, default=None)

    def add(self, index: int, outcome: Outcome, attempt: Attempt) -> None:
        """Record a finished choice. It will be on disk even if the client leaves now."""
        if self.appender is None:
            return
        if not outcome.trajectory.text.strip():
            # Nothing can be learnt from it; `motab synth` takes it for a failure, too.
            _log.warning("%s: choice %d is empty and is not recorded", self.request_id, index)
            return
        try:
            record = self._record(index, outcome, attempt)
        except ValidationError as error:
            self._fault = error
        else:
            self._pending.append(self.appender.add(record))

    async def on_disk(self) -> None:
        """Return when all records are on disk. Raises `RecordNotWritten` if one is not."""
        if self._fault is not None:
            message = (
                f"a trajectory breaks the format of records: {self._fault}; please report this"
            )
            raise MotabError(message) from self._fault
        if self.appender is None:
            return
        for written in self._pending:
            problem = await self.appender.within_limit(written)
            if problem is not None:
                message = f"the answer is complete, but its record is not on disk: {problem}"
                raise RecordNotWritten(message)

    def _record(self, index: int, outcome: Outcome, attempt: Attempt) -> Record:
        trajectory = outcome.trajectory
        found = trace(outcome, replace(self.options, trace="full"), self.models)
        question = self.questions[index // self.request.n]
        asked = [Message(role=one.role, content=one.content) for one in question.messages]
        if question.begun:
            asked.append(Message(role="assistant", content=question.begun))
        if question.prompt is not None:
            asked = [Message(role="user", content=question.prompt)]
        return Record(
            # A client may name two requests alike, and the answers' ids are made of that name.
            id=f"{self.head.id}-{index}-{urandom(4).hex()}",
            sample=index,
            messages=tuple(asked),
            output=trajectory.text,
            spans=tuple(Span(**span) for span in found["spans"]),
            method=found["method"],
            params=found["params"],
            models=Models(**found["models"]),
            scoring=outcome.scoring,
            breach=trajectory.breach,
            bifurcation=trajectory.bifurcation,
            breaches=tuple(Breach(**one) for one in found.get("breaches", ())) or None,
            steps=tuple(StepRecord(**step) for step in found["steps"]),
            finish_reason=trajectory.finish_reason,
            usage=_usage_of(outcome.usage),
            answer=None,
            predicted=None,
            correct=None,
            attempts=attempt.number,
            seconds=attempt.seconds,
            motab_version=__version__,
            quality=tuple(outcome.quality),
            scoring_fallbacks=dict(outcome.fallbacks) or None,
            limited_by=LimitedBy(**found["limited_by"]) if "limited_by" in found else None,
            chosen=Chosen(**found["chosen"]) if "chosen" in found else None,
            sampling=self.request.sampled() or None,
            chat_template_kwargs=self.request.chat_template_kwargs or None,
            reasoning_effort=self.request.reasoning_effort,
            request_id=self.request_id,
            response_id=self.head.id,
            raw_prompt=question.prompt is not None,
        )


def _usage_of(spent: Spent) -> Usage:
    motab = {name: getattr(spent, name) for name in MotabUsage.model_fields}
    return Usage(
        prompt_tokens=spent.prompt_tokens,
        completion_tokens=spent.completion_tokens,
        total_tokens=spent.prompt_tokens + spent.completion_tokens,
        motab=MotabUsage(**motab),
    )


async def check_records(appender: Appender | None) -> None:
    """Raise `RecordNotWritten` if records are wanted and cannot be written now."""
    problem = None if appender is None else await appender.check()
    if problem is not None:
        raise RecordNotWritten(f"no trajectory begins while records cannot be written: {problem}")
