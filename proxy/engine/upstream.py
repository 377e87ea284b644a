"""Holds the engine's knowledge of a server: its limits, its speeds and its ways to score."""

import asyncio
import logging
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
)
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import Any, Literal, Protocol, TypeVar

from proxy.backends.base import (
    Call,
    Context,
    Draft,
    GatedWriter,
    MarkupReader,
    PlainChat,
    Reader,
    Sampling,
    Scorer,
    Segment,
    Writer,
)
from proxy.backends.limits import NO_LIMITS, ModelLimits
from proxy.core.params import Params
from proxy.core.thinking import Reasoning
from proxy.core.types import Scoring
from proxy.engine.borders import NEWLINES, newlines_end_tokens
from proxy.engine.budget import Budget
from proxy.engine.outlet import Outlet
from proxy.engine.schedule import ComputingSpeed, WritingSpeed
from proxy.errors import MotabError, ScoringUnavailable, first_error
from proxy.tracing.attributes import CallName, of_call
from proxy.tracing.tracer import TraceSpan

_MOST_COUNTED = 1000
# A character that no vocabulary has as one token.
_SEVERAL_TOKENS = "\U000200ff"
_Answer = TypeVar("_Answer")
_log = logging.getLogger(__name__)


CallKind = Literal["write", "score"]
LoadObserver = Callable[[CallKind, int, int, int], None]
"""Called when the load of a server changes: the kind of calls, how many of them wait for a place,
how many run, and how many may run at once."""


class Places:
    """Lets a server do up to `num` calls of a kind at once, such as texts that it writes.

    A text that continues a trajectory comes before texts that begin one: the trajectory holds a
    seat and has cost tokens already, and where one server is student and teacher its correction
    would otherwise wait for the drafts of all others. Texts of the same kind are served in order.
    """

    def __init__(
        self,
        num: int,
        on_load: Callable[[int, int, int], None] = lambda _waiting, _running, _num: None,
    ) -> None:
        """`on_load` gets how many calls wait and run, and `num`: now, and whenever they change."""
        self._num = self._num_free = num
        self._on_load = on_load
        self._continuing: deque[asyncio.Future[None]] = deque()
        self._beginning: deque[asyncio.Future[None]] = deque()
        self._notice()

    @asynccontextmanager
    async def held(self, span: TraceSpan) -> AsyncIterator[None]:
        """Hold a place for a call that begins something, once there is a place."""
        place = self.ask(continues=False)
        try:
            with span.queued():
                await place
            yield
        finally:
            self.leave(place)

    def ask(self, *, continues: bool) -> asyncio.Future[None]:
        """Ask for a place, which is there once the future is done. Give it to `leave` in any case.

        Not a coroutine: a text must be in the queue before a text that it follows leaves its place.
        """
        place = asyncio.get_running_loop().create_future()
        if self._num_free:  # nobody waits, because a place that is left goes to a waiter at once
            self._num_free -= 1
            place.set_result(None)
        else:
            (self._continuing if continues else self._beginning).append(place)
        self._notice()
        return place

    def leave(self, place: asyncio.Future[None]) -> None:
        """Leave a place to the next waiter, or leave the queue."""
        if place.cancelled() or not place.done():
            self._forget(place)
        else:
            self._pass_on()
        self._notice()

    def _pass_on(self) -> None:
        waiters = chain(self._continuing, self._beginning)
        # A cancelled waiter is about to leave the queue.
        following = next((waiter for waiter in waiters if not waiter.done()), None)
        if following is None:
            self._num_free += 1
        else:
            self._forget(following)
            following.set_result(None)

    def _forget(self, place: asyncio.Future[None]) -> None:
        for queue in (self._continuing, self._beginning):
            if place in queue:
                queue.remove(place)

    def _notice(self) -> None:
        num_waiting = len(self._continuing) + len(self._beginning)
        self._on_load(num_waiting, self._num - self._num_free, self._num)


class Template(Protocol):
    """The chat template of an upstream's model, or the API in its place."""

    @property
    def takes_kwargs(self) -> bool:
        """Return whether it has variables."""
        ...

    async def takes_effort(self) -> bool:
        """Return whether `reasoning_effort` makes a difference to it."""
        ...

    async def reasoning(self, kwargs: Mapping[str, Any]) -> Reasoning:
        """Return the model's format of thoughts under these variables."""
        ...


class ReplicaSet(Protocol):
    """The servers of an upstream, among which its calls are spread."""

    @property
    def are_several(self) -> bool:
        """Return whether there is more than one."""
        ...

    @property
    def num_busy(self) -> int:
        """Return how many of them have trajectories."""
        ...

    def states(self) -> Mapping[str, str]:
        """Return how each is, by its address: `ok`, or what is wrong."""
        ...

    async def replace(self, base_urls: Iterable[str]) -> None:
        """Make these the servers. One that is no longer among them finishes its trajectories.

        Raises an `UpstreamError`, and changes nothing, if they cannot serve.
        """
        ...


@dataclass(slots=True)
class Upstream:
    """A server and its limit. Writing and scoring are counted separately, each up to
    `max_concurrent`, so that long drafts cannot delay short scoring calls.
    """

    name: str
    reader: Reader
    writer: Writer
    scorers: tuple[Scorer, ...]
    """The ways to score that its server offers, best first."""
    max_concurrent: int
    reasoning: Reasoning | None = None
    """Its model's format of thoughts; None if that is not known."""
    markup: MarkupReader | None = None
    """`reader`, if it knows special tokens; None: the model reads the text unchanged."""
    writes_logprobs: Literal["no", "yes", "scaled"] = "no"
    """Whether its text can come with log-probabilities; `scaled`: by the sampling temperature."""
    why_not: Mapping[Scoring, str] = field(default_factory=dict)
    """The reasons that the server lacks ways to score that others of its kind have."""
    gpus: float = 1.0
    """The price of a second of one of its servers, in seconds of a server with one GPU."""
    chat: PlainChat | None = None
    """Its chat route for requests that pass as they are; None if there is none."""
    template: Template | None = None
    """None: whatever a request says to the template, the format of thoughts stays the same."""
    unsampled: frozenset[str] = frozenset()
    """The sampling values that its server has no field for."""
    on_wait: Callable[[], None] = lambda: None
    """Called when a text that it writes has to wait for verdicts."""
    model: str | None = None
    """The model's name at its server."""
    on_load: LoadObserver = lambda _kind, _waiting, _running, _num: None
    limits: ModelLimits = NO_LIMITS
    """The most tokens that its model takes, as far as they are known at the start."""
    counts_exactly: bool = True
    """Whether its reader counts tokens as its server does."""
    replicas: ReplicaSet | None = None
    """None: it is no server at a known address."""
    budget: Budget = field(init=False)
    num_tokens_of: dict[str, int] = field(init=False, default_factory=dict)
    """The tokens of texts that recur, such as the revise token's, counted once."""
    _tags: dict[str, Segment | None] = field(init=False, default_factory=dict)
    _blank_lines_end: bool | None = field(init=False, default=None)
    gated_writer: GatedWriter | None = field(init=False)
    """`writer`, if it can be paused."""
    writing: Places = field(init=False)
    scoring: Places = field(init=False)
    writing_speed: WritingSpeed = field(init=False, default_factory=WritingSpeed)
    computing_speed: ComputingSpeed = field(init=False, default_factory=ComputingSpeed)

    def __post_init__(self) -> None:
        # isinstance against a protocol takes 20 us, so it is done once.
        self.gated_writer = self.writer if isinstance(self.writer, GatedWriter) else None
        self.writing = Places(self.max_concurrent, partial(self.on_load, "write"))
        self.scoring = Places(self.max_concurrent, partial(self.on_load, "score"))
        self.budget = Budget(self.name, self.limits, self.counts_exactly)

    @property
    def gpus_writing(self) -> float:
        """The price of a second in which all of its servers that have trajectories write."""
        return self.gpus * max(1, 0 if self.replicas is None else self.replicas.num_busy)

    async def num_tokens(self, text: str, call: Call) -> int:
        """Return the number of tokens of a text that recurs from request to request."""
        found = self.num_tokens_of.get(text)
        if found is None:
            (segment,) = await self.reader.encode([text], call)
            found = len(segment.token_ids)
            if len(self.num_tokens_of) < _MOST_COUNTED:  # clients choose the texts
                self.num_tokens_of[text] = found
        return found

    async def tag(self, text: str, call: Call) -> Segment | None:
        """Return the token of a thought's tag; None if no token of the model's is that tag."""
        if self.markup is None:
            return None
        if text not in self._tags:
            found = await self.markup.markup(text, call)
            self._tags[text] = found if len(found.token_ids) == 1 else None
        return self._tags[text]

    def span(self, call: Call, name: CallName) -> TraceSpan:
        """Start the span of a call of the server; a trajectory that nobody records has none."""
        if not call.span.is_recording:
            return call.span
        return call.span.child(name, of_call(name, self.name, self.model))

    @asynccontextmanager
    async def place_to_score(self, call: Call) -> AsyncIterator[Call]:
        """Hold a place for a scoring call, in a span of its own."""
        with self.span(call, "score") as span:
            async with self.scoring.held(span):
                yield call if span is call.span else replace(call, span=span)

    def drafts(
        self, context: Context, sampling: Sampling, call: Call, gate: asyncio.Event, max_tokens: int
    ) -> AsyncGenerator[Draft]:
        """Return the stream of a write; a writer that cannot wait ignores the gate."""
        if self.gated_writer is not None:
            return self.gated_writer.write_gated(context, sampling, max_tokens, call, gate)
        return self.writer.write(context, sampling, max_tokens, call)

    async def blank_lines_end(self, call: Call) -> bool:
        """Return whether one of the model's tokens ends with every blank line, whatever follows.

        False if that is not known: the text that follows then decides. The answer changes no value.
        """
        if self._blank_lines_end is None:
            found = None
            if all(scorer.scoring != "echo" for scorer in self.scorers):  # its tokens are others
                asking = self.reader.encode_running([NEWLINES], call)
                found = await _unless_failed(asking, "the tokens of blank lines are not known")
            self._blank_lines_end = found is not None and newlines_end_tokens(found[0])
        return self._blank_lines_end

    async def require_end_of(self, text: str, call: Call) -> None:
        """Raise `TokenizerFailed` if more text may hide which tokens end with this text.

        A server's strings hide that only between characters that each are several tokens.
        """
        if not text[-1].isascii():
            await self.reader.encode_running([(text, _SEVERAL_TOKENS)], call)

    def scorer(self, way: Scoring | Literal["auto"]) -> Scorer:
        """Return the scorer of that rung, or the best one. Raises `ScoringUnavailable`."""
        for scorer in self.scorers:
            if way in {"auto", scorer.scoring}:
                return scorer
        ways = ", ".join(scorer.scoring for scorer in self.scorers) or "none"
        wanted = "no way to score" if way == "auto" else f"no '{way}'"
        lost = self.why_not if way == "auto" else {way: self.why_not.get(way)}
        reasons = "".join(f"; no '{one}': {why}" for one, why in lost.items() if why)
        raise ScoringUnavailable(f"upstream '{self.name}' has {wanted}; it has: {ways}{reasons}")


class Gate(asyncio.Event):
    """Set while a text may be written: its verdicts are not far behind, and its output is taken.
    Waiting time does not count as the server's.
    """

    def __init__(self, upstream: Upstream, outlet: Outlet) -> None:
        super().__init__()
        self.set()
        self._upstream = upstream
        self._outlet = outlet
        self._is_paused = False
        self._is_held_open = False

    def pause(self) -> None:
        """Let no more text be written, unless the gate is held open."""
        self._is_paused = True
        self._turn()

    def resume(self) -> None:
        """Let text be written again."""
        self._is_paused = False
        self._turn()

    @contextmanager
    def held_open(self) -> Iterator[None]:
        """Let text be written even if it is paused: a verdict needs the text that comes next."""
        self._is_held_open = True
        self._turn()
        try:
            yield
        finally:
            self._is_held_open = False
            self._turn()

    def _turn(self) -> None:
        if self._is_paused and not self._is_held_open:
            self.clear()
        else:
            self.set()

    def is_set(self) -> bool:
        """Return whether the text may be written."""
        return super().is_set() and not self._outlet.is_full

    async def wait(self) -> Literal[True]:
        """Wait until the gate is set. If it is not set already, the text pauses here."""
        while not self.is_set():
            with self._upstream.writing_speed.pausing():
                await self._outlet.has_room()
                if not super().is_set():
                    self._upstream.on_wait()
                    await super().wait()
        return True


async def num_revise_tokens(student: Upstream, params: Params, call: Call) -> int | None:
    """Return the number of the revise token's tokens, with the blank line after it.

    A count is no reason to lose a trajectory, or to start no server: a failure is logged, and gives
    None.
    """
    counting = student.num_tokens(params.revise + "\n\n", call)
    return await _unless_failed(counting, "the revise token cannot be counted")


async def _unless_failed(asking: Awaitable[_Answer], what: str) -> _Answer | None:
    """Return the answer; None, after a line in the log, if the server fails to give it."""
    try:
        return await asking
    except (MotabError, ExceptionGroup) as error:
        if not isinstance(cause := first_error(error), MotabError):
            raise
        _log.warning("%s: %s", what, cause)
        return None
