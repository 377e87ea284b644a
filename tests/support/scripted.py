"""Scripts a backend in this process: timing and faults on demand.

What it writes is a `Script`, what it thinks of a step is a function; `faults` make a chosen call
fail or hang. It keeps what it was asked. One character is one token.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from proxy.backends.base import Call, Context, Decoded, Draft, Question, Sampling, Scores, Segment
from proxy.core.thinking import Reasoning
from proxy.core.types import FinishReason, Scoring, StepScore
from proxy.engine.borders import NEWLINES
from proxy.engine.pair import Pair
from proxy.engine.upstream import Upstream
from proxy.errors import TokenizerFailed
from tests.support.patience import PATIENCE_S

Item = str | tuple[str, ...] | asyncio.Event | Exception
Judge = Callable[[str, str], StepScore]
"""The score of a step, given the context's steps as text and the step."""


@dataclass(frozen=True, slots=True)
class Script:
    """The outcome of one write: pieces (a tuple comes in one draft), waits for events, an error.

    With `end` None the stream stops without saying that it ended.
    """

    items: tuple[Item, ...] = ()
    end: FinishReason | None = "stop"
    cached: int | None = 0


def says(*items: Item, end: FinishReason | None = "stop") -> Script:
    """A script of these items."""
    return Script(items, end)


@dataclass(slots=True)
class Writing:
    """One write as it was asked for, and what became of it."""

    context: str
    steps: list[str]
    max_tokens: int
    sampling: Sampling
    session_id: str
    pieces: list[str] = field(default_factory=list)
    ended: bool = False
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def cancelled(self) -> bool:
        """Closed before its end."""
        return self.closed.is_set() and not self.ended


@dataclass(frozen=True, slots=True)
class ScoreCall:
    """One scoring call as it was asked for."""

    context: str
    steps: list[str]
    num_new: int
    top_k: int
    entropy_known: bool
    closed: asyncio.Event = field(default_factory=asyncio.Event)


def values(table: Mapping[str, float], *, otherwise: float = 0.9, entropy: float = 0.0) -> Judge:
    """A judge that knows the value of the steps in the table by their text."""
    return lambda _context, step: StepScore(table.get(step, otherwise), entropy, len(step))


@dataclass(slots=True)
class ScriptedBackend:
    """See the module."""

    script: Script | Callable[[Sampling], Script] = Script()
    judge: Judge = field(default_factory=lambda: values({}))
    next_entropy: Callable[[str], float | None] = lambda _text: None
    """H of the state after the scored text, where this server gives it."""
    faults: dict[tuple[str, int], Exception | asyncio.Event] = field(default_factory=dict)
    """What the k-th call of a method (`("score", 0)`) raises or waits for."""
    distort: Callable[[Scores], Scores] = lambda scores: scores
    """Applied to every answer of `score`."""
    cached: int | None = 0
    decode_logprob: float = 0.0
    """What every token was decoded with."""
    written_logprob: float | None = 0.0
    """What every token is written with; None where this server tells none."""
    scoring: Scoring = "prompt_logprobs"
    recomputes: bool = False
    hides_ends: bool = False
    """Whether its strings do not show where tokens end that are no ASCII."""
    rendered: list[Question] = field(default_factory=list)
    encoded: list[str] = field(default_factory=list)
    marked: list[str] = field(default_factory=list)
    writes: list[Writing] = field(default_factory=list)
    scorings: list[ScoreCall] = field(default_factory=list)
    max_scoring: int = 0
    """The most scoring calls that were open at once."""
    asked: asyncio.Condition = field(default_factory=asyncio.Condition)
    _num_calls: dict[str, int] = field(default_factory=dict)

    async def _called(self, method: str) -> None:
        index = self._num_calls.get(method, 0)
        self._num_calls[method] = index + 1
        async with self.asked:
            self.asked.notify_all()
        fault = self.faults.get((method, index))
        if isinstance(fault, asyncio.Event):
            await fault.wait()
        elif fault is not None:
            raise fault

    async def until_called(self, method: str, times: int = 1) -> None:
        """Wait until the method was called `num` times."""
        async with asyncio.timeout(PATIENCE_S), self.asked:
            await self.asked.wait_for(lambda: self._num_calls.get(method, 0) >= times)

    async def check(self) -> None:
        await self._called("check")

    async def render(self, question: Question, call: Call) -> Segment:
        self.rendered.append(question)
        with call.clock.running():
            await self._called("render")
        turns = "".join(f"<{m.role}>{m.content}" for m in question.messages)
        return _segment(turns + "<answer>" if question.prompt is None else question.prompt)

    async def encode(self, texts: Sequence[str], call: Call) -> list[Segment]:
        self.encoded += texts
        with call.clock.running():
            await self._called("encode")
        return [_segment(text) for text in texts]

    async def encode_running(
        self, texts: Sequence[Sequence[str]], call: Call
    ) -> list[list[Segment]]:
        if list(texts) == [NEWLINES]:  # every model is asked once, before its first trajectory
            return [list(map(_segment, NEWLINES))]
        if self.hides_ends and not texts[0][0].isascii():
            raise TokenizerFailed("the tokens cannot be distinguished; set tokenizer")
        return [await self.encode(parts, call) for parts in texts]

    async def markup(self, text: str, call: Call) -> Segment:
        self.marked.append(text)
        with call.clock.running():
            await self._called("markup")
        return _segment(text)

    async def prompt_text(self, rendered: Segment, call: Call) -> str:
        del call
        return rendered.text or _spelt(rendered.token_ids)

    async def write(
        self, context: Context, sampling: Sampling, max_tokens: int, call: Call
    ) -> AsyncGenerator[Draft]:
        steps = [segment.text for segment in context.steps]
        writing = Writing(_text(context), steps, max_tokens, sampling, call.session_id)
        self.writes.append(writing)
        script = self.script if isinstance(self.script, Script) else self.script(sampling)
        try:
            with call.clock.running():
                await self._called("write")
                for item in script.items:
                    if isinstance(item, asyncio.Event):
                        await item.wait()
                    elif isinstance(item, Exception):
                        raise item
                    else:
                        pieces = (item,) if isinstance(item, str) else item
                        pieces = pieces[: max_tokens - len(writing.pieces)]
                        writing.pieces += pieces
                        yield Draft(pieces, logprobs=self._told(sampling, len(pieces)))
                    if len(writing.pieces) >= max_tokens:
                        writing.ended = True
                        yield Draft((), "length", script.cached)
                        return
                writing.ended = True
                if script.end is not None:
                    yield Draft((), script.end, script.cached)
        finally:
            writing.closed.set()

    def _told(self, sampling: Sampling, num: int) -> tuple[tuple[float, ...], ...] | None:
        if not sampling.logprobs or self.written_logprob is None:
            return None
        return ((self.written_logprob,),) * num

    async def decode(self, context: Context, max_tokens: int, call: Call) -> Decoded:
        await self._called("decode")
        script = self.script if isinstance(self.script, Script) else self.script(Sampling(0.0))
        pieces = [piece for item in script.items if isinstance(item, str) for piece in item]
        logprobs = tuple((self.decode_logprob,) for _ in pieces)
        return Decoded(tuple(map(_segment, pieces)), logprobs)

    async def score(
        self, context: Context, num_new: int, top_k: int, call: Call, *, entropy_known: bool
    ) -> Scores:
        texts = [segment.text for segment in context.steps]
        scoring = ScoreCall(_text(context), texts, num_new, top_k, entropy_known)
        self.scorings.append(scoring)
        num_open = sum(not one.closed.is_set() for one in self.scorings)
        self.max_scoring = max(self.max_scoring, num_open)
        try:
            with call.clock.running():
                await self._called("score")
        finally:
            scoring.closed.set()
        scores: list[StepScore] = []
        for index in range(len(texts) - num_new, len(texts)):
            score = self.judge("".join(texts[:index]), texts[index])
            known = entropy_known and not scores
            scores.append(StepScore(score.value, None, score.num_tokens) if known else score)
        num_tokens = sum(len(text) for text in texts[-num_new:])
        found = Scores(tuple(scores), self.next_entropy("".join(texts)), num_tokens, self.cached)
        return self.distort(found)


def upstream(
    name: Literal["student", "teacher"],
    backend: ScriptedBackend,
    reasoning: Reasoning | None = None,
) -> Upstream:
    """The backend as the engine knows it."""
    return Upstream(name, backend, backend, (backend,), 16, reasoning, backend, "yes")


def pair(student: ScriptedBackend, teacher: ScriptedBackend) -> Pair:
    """Both of them."""
    return Pair(upstream("student", student), upstream("teacher", teacher))


def _segment(text: str) -> Segment:
    return Segment(text, tuple(map(ord, text)))


def _text(context: Context) -> str:
    """The text of the ids that were sent; the segments might say otherwise."""
    return _spelt(context.token_ids)


def _spelt(ids: Iterable[int]) -> str:
    """A character an id, because a client may send any id also where there is no such character."""
    return "".join(chr(i) if i < 0xD800 or 0xE000 <= i < 0x110000 else "\ufffd" for i in ids)
