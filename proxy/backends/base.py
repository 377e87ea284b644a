"""Defines what the engine needs from a server, as small protocols, and the data they exchange."""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from dataclasses import InitVar, dataclass, field, replace
from itertools import pairwise
from typing import Any, NamedTuple, Protocol, runtime_checkable

from proxy.backends.clock import UpstreamClock
from proxy.backends.stay import Stay
from proxy.backends.token_ids import TokenIds
from proxy.core.params import SamplingValues
from proxy.core.scoring import oracle_value
from proxy.core.types import FinishReason, Scoring, StepScore
from proxy.tracing.tracer import NO_SPAN, TraceSpan


@dataclass(frozen=True, slots=True)
class Message:
    """One chat message."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Question:
    """q: chat messages for the model's template, or a raw prompt that is used unchanged."""

    messages: tuple[Message, ...] = ()
    prompt: str | None = None
    begun: str = ""
    """The beginning of the answer, which the models continue."""
    token_ids: tuple[int, ...] = ()
    """The prompt in the tokens of upstream `tokens_of`."""
    tokens_of: str = ""
    template_kwargs: Mapping[str, Any] = field(default_factory=dict, hash=False, kw_only=True)
    """Additional variables of the models' chat templates, in place of the upstreams' own."""

    def under(self, defaults: Mapping[str, Any]) -> "Question":
        """Return the question for a template that has these variables unless it gives its own."""
        if not defaults:
            return self
        return replace(self, template_kwargs={**defaults, **self.template_kwargs})

    def wire_messages(self) -> list[dict[str, str]]:
        """The messages as every chat route takes them."""
        return [{"role": m.role, "content": m.content} for m in self.messages]


@dataclass(frozen=True, slots=True)
class Segment:
    """A text and one model's token ids that stand for exactly that text.

    Of a part of a running text: the tokens that end in it.
    """

    text: str
    token_ids: tuple[int, ...]


@dataclass(slots=True)
class Context:
    """s_t as one model reads it: its rendered prompt, then one segment per step.

    A step has the tokens that end in it. They are those of the running text and depend neither on
    chunks nor on which steps share a scoring call; a longer context only appends to them, so the
    server's prefix cache is kept.
    """

    prompt: Segment
    given: InitVar[Iterable[Segment]] = ()
    """Its first steps."""
    question: Question = field(default=Question(), kw_only=True)
    """The question that `prompt` renders, for servers that take messages only."""
    texts: list[str] = field(init=False, default_factory=list)
    """The steps' texts."""
    token_ids: TokenIds = field(init=False)
    """The prompt's ids, then all steps' ids."""
    bounds: list[int] = field(init=False)
    """`bounds[k]` is the offset in `token_ids` at which step k begins; the last is the end."""
    following: str = field(init=False, default="")
    """Text after the steps, as far as it decides which tokens end in the last one."""

    def __post_init__(self, given: Iterable[Segment]) -> None:
        self.token_ids = TokenIds(self.prompt.token_ids)
        self.bounds = [len(self.token_ids)]
        for step in given:
            self.append(step)

    @property
    def steps(self) -> list[Segment]:
        """The steps. Their ids are held in `token_ids` only, so each call makes new segments."""
        places = zip(self.texts, pairwise(self.bounds), strict=True)
        return [Segment(text, tuple(self.token_ids[a:b])) for text, (a, b) in places]

    def num_ids(self, index: int) -> int:
        """Return the number of tokens that end in a step."""
        return self.bounds[index + 1] - self.bounds[index]

    def append(self, step: Segment) -> None:
        """Add the next step."""
        self.token_ids.truncate(self.bounds[-1])
        self.token_ids.extend(step.token_ids)
        self.texts.append(step.text)
        self.bounds.append(len(self.token_ids))

    def truncate(self, num_steps: int) -> None:
        """Drop all steps after the first `num_steps`."""
        del self.texts[num_steps:]
        del self.bounds[num_steps + 1 :]
        self.token_ids.truncate(self.bounds[-1])

    def copy(self) -> "Context":
        """Return the same prompt and steps apart, without what comes after them."""
        copied = Context(self.prompt, question=self.question)
        copied.texts, copied.bounds = self.texts[:], self.bounds[:]
        copied.token_ids = self.token_ids.first(self.bounds[-1])
        return copied

    def look_ahead(self, token_id: int) -> None:
        """Add the token in which the last step lies, if no token ends in that step."""
        self.token_ids.extend((token_id,))

    def ranges(self, num_steps: int) -> list[range]:
        """Return the places in `token_ids` of the tokens that give the last steps their values.

        A step in which no token ends has the value of the one token in which it lies.
        """
        return [
            range(start, max(end, min(start + 1, len(self.token_ids))))
            for start, end in pairwise(self.bounds[len(self.bounds) - num_steps - 1 :])
        ]

    @property
    def looks_ahead(self) -> bool:
        """Return whether `token_ids` goes beyond the steps."""
        return len(self.token_ids) > self.bounds[-1]


@dataclass(frozen=True, slots=True)
class Sampling(SamplingValues):
    """The sampling settings. Every value is sent, also a neutral value, because servers fill an
    omitted field with a default of their own or of the model. All other samplers are switched off.
    """

    seed: int | None = None
    stop: tuple[str, ...] = ()
    special_tokens: bool = False
    """Special tokens are written out: a harmony model's text makes no sense without them."""
    logprobs: bool = False
    """Drafts hold log-probabilities, for servers that give them (`Upstream.writes_logprobs`)."""

    @property
    def seed_31_bits(self) -> int | None:
        """The seed for servers that accept neither negative nor larger seeds."""
        return None if self.seed is None else self.seed & 0x7FFFFFFF

    @property
    def seed_63_bits(self) -> int | None:
        """The seed for servers that accept no negative seed, or read -1 as no seed at all."""
        return None if self.seed is None else self.seed & 0x7FFFFFFFFFFFFFFF

    @property
    def counts_from_start(self) -> bool:
        """Return whether the text can be repeated only from its start.

        A seed's random numbers are counted from there, and so are the tokens that penalties count.
        """
        return self.has_penalties or (self.seed is not None and self.temperature > 0)

    @property
    def is_free(self) -> bool:
        """Return whether the same request may give another text each time."""
        return self.seed is None and self.temperature > 0


GREEDY = Sampling(temperature=0.0)
"""Always the most probable token, as for scores, which no sampling may change."""


class Draft(NamedTuple):
    """Text as it arrives: one piece per token (see `core.types.Wrote`), and the end once it came.

    `num_cached_tokens` is the number of prompt tokens from the server's cache; it comes with the
    last draft, and is None if the server does not report it.

    A broken stream is resumed from the `token_ids` of its drafts, which then spell exactly its text
    so far, with one id per piece. They are None while the ids are not known exactly; the next draft
    that has ids adds the missing ones.

    `logprobs`, if `Sampling` asked for them, has for each piece the natural logarithms of its
    tokens' probabilities, NaN if the server gave none.

    Not a dataclass: one is made for every event of a stream, and a tuple takes a third of the time.
    """

    pieces: tuple[str, ...]
    end: FinishReason | None = None
    num_cached_tokens: int | None = None
    token_ids: tuple[int, ...] | None = None
    logprobs: tuple[tuple[float, ...], ...] | None = None


@dataclass(frozen=True, slots=True)
class Scores:
    """One score per new step; `next_entropy` is H of the state after them, if the call gave it.

    `num_tokens` teacher tokens were scored, `num_cached_tokens` of the context came from the
    server's cache (None if the server does not report it). `scoring` is the way that gave them, if
    it was not the scorer's own.
    """

    steps: tuple[StepScore, ...]
    next_entropy: float | None
    num_tokens: int
    num_cached_tokens: int | None
    scoring: Scoring | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """The trajectory that a request to a server belongs to.

    `session_id` keeps the trajectory on one replica behind a router (and in one slot), `stay` on
    one of our own replicas, whose cache then serves it; `span` is the piece of work that the
    request is a part of.
    """

    session_id: str
    clock: UpstreamClock = field(default_factory=UpstreamClock)
    span: TraceSpan = NO_SPAN
    stay: Stay = field(default_factory=Stay, compare=False)


@dataclass(frozen=True, slots=True)
class Decoded:
    """A greedy continuation with the log-probabilities with which the model wrote it.

    `pieces` are as short as whole characters allow; `logprobs[i]` are natural logarithms, one per
    token of `pieces[i]`. It ends before the first token that is not text. Raises ValueError if a
    log-probability is missing or impossible.
    """

    pieces: tuple[Segment, ...]
    logprobs: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        for piece, logprobs in zip(self.pieces, self.logprobs, strict=True):
            try:
                oracle_value(logprobs)
            except ValueError as error:
                raise ValueError(f"written token {piece.text!r}: {error}") from error


@runtime_checkable
class Reader(Protocol):
    """Turns text into a model's tokens, at its server or in this process."""

    async def render(self, question: Question, call: Call) -> Segment:
        """Render the question in the model's chat template, up to where the answer begins."""
        ...

    async def encode(self, texts: Sequence[str], call: Call) -> list[Segment]:
        """Tokenise each text on its own, without special tokens, into ids for exactly that text."""
        ...

    async def encode_running(
        self, texts: Sequence[Sequence[str]], call: Call
    ) -> list[list[Segment]]:
        """Tokenise texts as `encode` does. Each is given in parts, which get the ids of the tokens
        that end in them. Raises `UpstreamMalformed` or `TokenizerFailed` if that is not known.
        """
        ...


class MarkupReader(Reader, Protocol):
    """A reader that also knows a model's special tokens, and its prompt as text."""

    async def markup(self, text: str, call: Call) -> Segment:
        """Tokenise text, reading the special tokens in it as such; none are added."""
        ...

    async def prompt_text(self, rendered: Segment, call: Call) -> str:
        """The text of a prompt from `render`, or of token ids alone, special tokens included.

        Raises `RequestError` or `UpstreamRefused` for ids that are no tokens.
        """
        ...


class Writer(Protocol):
    """A server that continues a context: the student's draft, or the teacher's correction."""

    async def check(self) -> None:
        """Raise an `UpstreamError` unless the server answers and has the model."""
        ...

    def write(
        self, context: Context, sampling: Sampling, max_tokens: int, call: Call
    ) -> AsyncGenerator[Draft]:
        """Stream the continuation; the last draft has `end` set.

        Closing the iterator cancels the request at the server.
        """
        ...

    async def decode(self, context: Context, max_tokens: int, call: Call) -> Decoded:
        """Continue greedily and return the log-probabilities, for the self-test.

        Raises `UpstreamRefused` if the server gives none while it writes.
        """
        ...


@runtime_checkable
class GatedWriter(Writer, Protocol):
    """A writer that can be paused."""

    def write_gated(
        self, context: Context, sampling: Sampling, max_tokens: int, call: Call, gate: asyncio.Event
    ) -> AsyncGenerator[Draft]:
        """As `write`, but pauses while the gate is not set, after the next draft from which the
        text can be continued as if it had never stopped.
        """
        ...


class PlainChat(Protocol):
    """A server's own chat route, which gets a client's request as it is."""

    async def complete(self, body: Mapping[str, Any], call: Call) -> dict[str, Any]:
        """Return the answer. Raises `RequestError` if the server refuses the request."""
        ...

    def stream(self, body: Mapping[str, Any], call: Call) -> AsyncGenerator[dict[str, Any]]:
        """Yield the chunks of the answer, as `complete` otherwise.

        Closing the iterator cancels the request at the server.
        """
        ...


class Scorer(Protocol):
    """Gives the teacher's probabilities of given text."""

    @property
    def scoring(self) -> Scoring:
        """This scorer's rung of the fallback ladder."""
        ...

    @property
    def recomputes(self) -> bool:
        """Return whether every call computes the whole context, so that fewer calls save work."""
        ...

    async def score(
        self, context: Context, num_new: int, top_k: int, call: Call, *, entropy_known: bool
    ) -> Scores:
        """V and H of the last `num_new` steps of `context`.

        With `entropy_known`, the first of them may come without H. Raises `UpstreamMalformed` if a
        log-probability is missing or impossible.
        """
        ...


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """One token of a given text: `end` is the offset in its UTF-8 bytes at which it ends.

    `logprob` is a natural logarithm, None if the server gave none.
    """

    end: int
    logprob: float | None


@runtime_checkable
class TokenScorer(Scorer, Protocol):
    """A scorer that can give each token's probability: every scorer but the judges."""

    async def token_logprobs(self, context: Context, call: Call) -> tuple[ScoredToken, ...]:
        """The log-probabilities of the tokens that cover the last step of `context`.

        Raises `UpstreamMalformed` if the tokens do not cover exactly that step.
        """
        ...
