"""Resumes a broken stream from the tokens received, if the text is sure to stay the same."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

from proxy.backends.base import Call, Context, Decoded, Draft, Sampling, Segment, Writer
from proxy.backends.transport.calls import Calls
from proxy.errors import UpstreamError, UpstreamInterrupted, UpstreamMalformed


class ResumingWriter:
    """A writer whose streams outlive failures of the server, by the retry policy of its calls.

    Attempts and their total time are counted anew after each new piece of text: what is limited is
    how long the server may write nothing. Each resumption spends some of `max_tokens`, so they end.
    """

    def __init__(self, writer: Writer, calls: Calls) -> None:
        self.server = writer
        """Whose streams they are."""
        self._calls = calls

    async def check(self) -> None:
        await self.server.check()

    async def decode(self, context: Context, max_tokens: int, call: Call) -> Decoded:
        return await self.server.decode(context, max_tokens, call)

    def write(
        self, context: Context, sampling: Sampling, max_tokens: int, call: Call
    ) -> AsyncGenerator[Draft]:
        """As one stream: no text comes twice or is lost.

        A piece without text waits for the next one that has some, for a token that ends inside a
        character is written anew after a break. Raises `UpstreamInterrupted` where the text would
        not be the same.
        """
        always = asyncio.Event()
        always.set()
        return self.write_gated(context, sampling, max_tokens, call, always)

    async def write_gated(
        self, context: Context, sampling: Sampling, max_tokens: int, call: Call, gate: asyncio.Event
    ) -> AsyncGenerator[Draft]:
        """As `write`. While the gate is not set the stream is closed, so its server does not write
        either, and another one goes on from the exact tokens; where these are not known (yet), or
        the text would become another one, it goes on writing.
        """
        # A copy: the caller's may grow before this one is read again.
        text = _Text(self._calls.upstream, _copy(context), sampling, max_tokens)
        failures: list[UpstreamError] = []

        async def progress() -> _Opened:
            if failures:  # counts as the first attempt, so that the next one waits
                raise failures.pop()
            drafts = self._attempt(text, call)
            try:
                return _Opened(drafts, await anext(drafts))
            except BaseException:
                await drafts.aclose()
                raise

        is_over = False
        while not is_over:
            await gate.wait()
            opened = await self._calls.retried(progress)
            try:
                async with aclosing(opened.drafts):
                    is_over = opened.first.end is not None
                    yield opened.first
                    while not is_over and (gate.is_set() or not text.can_wait):
                        draft = await anext(opened.drafts)
                        is_over = draft.end is not None
                        yield draft
            except UpstreamError as error:
                if not (error.retryable and text.is_complete):
                    failures.append(error)

    async def _attempt(self, text: "_Text", call: Call) -> AsyncGenerator[Draft]:
        """One stream, as far as it is new."""
        if text.is_complete:
            yield Draft((), "length")
            return
        context, max_tokens = text.rewind()
        drafts = self.server.write(context, text.sampling, max_tokens, call)
        async with aclosing(drafts):
            try:
                async for draft in drafts:
                    new = text.take(draft)
                    if new.pieces or new.end is not None:
                        yield new
                    if new.end is not None:
                        return
            except UpstreamError as error:
                if error.retryable:
                    text.broke(error)
                raise
        raise UpstreamMalformed(self._calls.upstream, "its text ended without a reason")


@dataclass(frozen=True, slots=True)
class _Opened:
    """A stream that brought its first new draft."""

    drafts: AsyncGenerator[Draft]
    first: Draft


@dataclass(slots=True)
class _Text:
    """What has come of a text, over all attempts at it.

    An attempt starts after the first tokens of `pieces`, those whose ids are known, and repeats the
    pieces after them, if any; a repetition that differs is an error.
    """

    upstream: str
    context: Context
    sampling: Sampling
    max_tokens: int
    pieces: list[str] = field(default_factory=list)
    """Handed on, one a token."""
    _token_ids: list[int] = field(default_factory=list)
    """The ids of the first of `pieces`."""
    _waiting: tuple[str, ...] = ()
    """Pieces without text, not handed on yet."""
    _waiting_logprobs: tuple[tuple[float, ...], ...] = ()
    """Theirs, where they were asked for."""
    _position: int = 0
    """How many of `pieces` the running attempt has come to."""
    _seam: str = ""
    """The text around the point from which the running attempt started, as far as a stop string
    could lie across it."""
    _seam_left: int = 0
    """How many characters of it are still to come."""
    _fault: UpstreamError | None = None
    """The last break."""

    @property
    def is_complete(self) -> bool:
        """All tokens came, and just the end did not. Pieces may be an estimate, ids are none."""
        return len(self._token_ids) == len(self.pieces) >= self.max_tokens

    @property
    def can_wait(self) -> bool:
        """Whether it can go on from here later, with all of its text as it is.

        Drawn with a seed it cannot: its next random numbers are in the open stream. Nor can it
        where a stop string may have begun, which its server would not see across the seam.
        """
        if self._waiting or len(self._token_ids) < len(self.pieces):
            return False
        if self.sampling.is_seeded:
            return False
        longest = max(map(len, self.sampling.stop), default=0)
        end = "".join(self.pieces[-longest:])[-longest:] if longest else ""
        starts = (stop[:n] for stop in self.sampling.stop for n in range(1, len(stop)))
        return not any(end.endswith(start) for start in starts)

    def broke(self, error: UpstreamError) -> None:
        """Raise `UpstreamInterrupted` where no attempt could bring the same text again.

        At temperature 0 any can, with a seed one from the very start: its random numbers are then
        those of the first. Without either any continuation will do, if it is of the exact ids.
        """
        self._fault = error
        ids_unknown = len(self._token_ids) < len(self.pieces)
        if ids_unknown and self.sampling.temperature > 0 and self.sampling.seed is None:
            raise self._interrupted("the ids of its last tokens are not known") from error

    def rewind(self) -> tuple[Context, int]:
        """Where the next attempt starts, and how many tokens it may write."""
        if self.sampling.is_seeded:
            self._token_ids.clear()
        num_known = len(self._token_ids)
        known = "".join(self.pieces[:num_known])
        longest = max(map(len, self.sampling.stop), default=1) - 1
        self._position, self._waiting, self._waiting_logprobs = num_known, (), ()
        self._seam, self._seam_left = known[max(0, len(known) - longest) :], longest
        context = _copy(self.context)
        if num_known:
            context.append(Segment(known, tuple(self._token_ids)))
        return context, self.max_tokens - num_known

    def take(self, draft: Draft) -> Draft:
        """What of a draft is new. Raises `UpstreamInterrupted` where it is not the same text."""
        pieces = (*self._waiting, *draft.pieces)
        logprobs = None
        if draft.logprobs is not None:
            logprobs = (*self._waiting_logprobs, *draft.logprobs)
        num_ready = len(pieces)
        if draft.token_ids is not None:
            self._token_ids += draft.token_ids
        elif draft.end is None:
            while num_ready and not pieces[num_ready - 1]:
                num_ready -= 1
        ready, self._waiting = pieces[:num_ready], pieces[num_ready:]
        self._waiting_logprobs = () if logprobs is None else logprobs[num_ready:]
        self._check_seam("".join(ready))
        num_old = min(len(self.pieces) - self._position, num_ready)
        if list(ready[:num_old]) != self.pieces[self._position : self._position + num_old]:
            raise self._interrupted("written again, its text was another")
        self._position += num_ready
        new = ready[num_old:]
        self.pieces += new
        if draft.end is not None and self._position < len(self.pieces):
            raise self._interrupted("written again, its text was shorter")
        cached = draft.num_cached_tokens
        if cached is not None:  # of the prompt, of which our own text is no part
            cached = min(cached, len(self.context.token_ids))
        piece_logprobs = None if logprobs is None else logprobs[num_old:num_ready]
        return Draft(new, draft.end, cached, logprobs=piece_logprobs)

    def _check_seam(self, text: str) -> None:
        """A server looks for stop strings in what it writes itself, not across the seam."""
        if not self._seam_left:
            return
        self._seam += text[: self._seam_left]
        self._seam_left -= min(self._seam_left, len(text))
        if any(stop in self._seam for stop in self.sampling.stop):
            raise self._interrupted("a stop string began before the break")

    def _interrupted(self, why: str) -> UpstreamInterrupted:
        num = len(self.pieces)
        message = f"its stream broke after {num} tokens and cannot be resumed: {why}"
        return UpstreamInterrupted(self.upstream, f"{message} (the break: {self._fault})")


def _copy(context: Context) -> Context:
    return Context(context.prompt, list(context.steps), question=context.question)
