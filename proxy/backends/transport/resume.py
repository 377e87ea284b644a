"""Resumes a broken stream from the tokens received, if the text is sure to stay the same."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

from proxy.backends.base import Call, Context, Decoded, Draft, Sampling, Segment, Writer
from proxy.backends.token_ids import Pieces, TokenIds
from proxy.backends.transport.calls import Calls
from proxy.errors import UpstreamError, UpstreamInterrupted, UpstreamMalformed


class ResumingWriter:
    """A writer whose streams survive failures of the server, under the retry policy of its calls.

    Each new piece of text resets the count of attempts and their total time: the limit is on how
    long the server may write nothing. Each resumption uses up some of `max_tokens`, so they end.
    """

    def __init__(self, writer: Writer, calls: Calls) -> None:
        self.server = writer
        """The writer of the streams."""
        self._calls = calls

    async def check(self) -> None:
        await self.server.check()

    async def decode(self, context: Context, max_tokens: int, call: Call) -> Decoded:
        return await self.server.decode(context, max_tokens, call)

    def write(
        self, context: Context, sampling: Sampling, max_tokens: int, call: Call
    ) -> AsyncGenerator[Draft]:
        """Write as one stream: no text comes twice or is lost.

        A piece without text waits for the next piece with text, because a token that ends inside a
        character is written again after a break. Raises `UpstreamInterrupted` if the text would
        not be the same.
        """
        always = asyncio.Event()
        always.set()
        return self.write_gated(context, sampling, max_tokens, call, always)

    async def write_gated(
        self, context: Context, sampling: Sampling, max_tokens: int, call: Call, gate: asyncio.Event
    ) -> AsyncGenerator[Draft]:
        """As `write`. While the gate is not set, the stream is closed, so that its server does not
        write either; a new stream then continues from the exact tokens. The stream stays open while
        the tokens are not known (yet), or if the text would change.
        """
        # A copy, because the caller's context may grow before this one is read again.
        text = _Text(self._calls.upstream, context.copy(), sampling, max_tokens)
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
        """One stream, without the text that came before it broke."""
        if text.is_complete:
            yield Draft((), "length")
            return
        context, max_tokens = text.rewind()
        drafts = self.server.write(context, text.sampling, max_tokens, call)
        del context  # which a stream that is open for long would hold a second time
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
    """A stream that has given its first new draft."""

    drafts: AsyncGenerator[Draft]
    first: Draft


@dataclass(slots=True)
class _Text:
    """The text received so far, over all attempts at it.

    An attempt starts after those first `pieces` whose ids are known, and repeats the pieces after
    them, if any; a repetition that differs is an error.
    """

    upstream: str
    context: Context
    sampling: Sampling
    max_tokens: int
    pieces: Pieces = field(default_factory=Pieces)
    """The pieces passed on, one per token."""
    _token_ids: TokenIds = field(default_factory=TokenIds)
    """The ids of the first `pieces`."""
    _waiting: tuple[str, ...] = ()
    """Pieces without text, not passed on yet."""
    _waiting_logprobs: tuple[tuple[float, ...], ...] = ()
    """The log-probabilities of the waiting pieces, if requested."""
    _position: int = 0
    """The number of `pieces` that the current attempt has reached."""
    _seam: str = ""
    """The text around the point from which the current attempt started, as far as a stop string
    could span it."""
    _seam_left: int = 0
    """The number of characters of `_seam` still to come."""
    _fault: UpstreamError | None = None
    """The error of the last break."""

    @property
    def is_complete(self) -> bool:
        """Return whether only the end is missing. Pieces may be an estimate, ids are exact."""
        return len(self._token_ids) == len(self.pieces) >= self.max_tokens

    @property
    def can_wait(self) -> bool:
        """Return whether the text can be continued from here later without a change.

        Seeded text cannot: its next random numbers are in the open stream, as the counts of
        penalties are. Nor can text that may end in the beginning of a stop string, which its server
        would not see across the seam.
        """
        if self._waiting or len(self._token_ids) < len(self.pieces):
            return False
        if self.sampling.counts_from_start:
            return False
        longest = max(map(len, self.sampling.stop), default=0)
        end = "".join(self.pieces[-longest:])[-longest:] if longest else ""
        starts = (stop[:n] for stop in self.sampling.stop for n in range(1, len(stop)))
        return not any(end.endswith(start) for start in starts)

    def broke(self, error: UpstreamError) -> None:
        """Raise `UpstreamInterrupted` if no attempt could give the same text again.

        At temperature 0 any attempt can; with a seed, an attempt from the very start can, because
        it draws the same random numbers. Without either, any continuation of the exact ids will do.
        """
        self._fault = error
        if not self.sampling.is_free or not self.pieces:
            return
        if self.sampling.counts_from_start:
            raise self._interrupted("its penalties count tokens from its start") from error
        if len(self._token_ids) < len(self.pieces):
            raise self._interrupted("the ids of its last tokens are not known") from error

    def rewind(self) -> tuple[Context, int]:
        """Return the context of the next attempt, and the number of tokens that it may write."""
        if self.sampling.counts_from_start:
            self._token_ids.truncate(0)
        num_known = len(self._token_ids)
        known = "".join(self.pieces[:num_known])
        longest = max(map(len, self.sampling.stop), default=1) - 1
        self._position, self._waiting, self._waiting_logprobs = num_known, (), ()
        self._seam, self._seam_left = known[max(0, len(known) - longest) :], longest
        context = self.context.copy()
        if num_known:
            context.append(Segment(known, tuple(self._token_ids)))
        return context, self.max_tokens - num_known

    def take(self, draft: Draft) -> Draft:
        """Return the new part of a draft. Raises `UpstreamInterrupted` if the text differs."""
        if self._is_all_new(draft):
            self._token_ids.extend(draft.token_ids or ())
            self._position += len(draft.pieces)
            self.pieces.extend(draft.pieces)
            return draft
        pieces = (*self._waiting, *draft.pieces)
        logprobs = None
        if draft.logprobs is not None:
            logprobs = (*self._waiting_logprobs, *draft.logprobs)
        num_ready = len(pieces)
        if draft.token_ids is not None:
            self._token_ids.extend(draft.token_ids)
        elif draft.end is None:
            while num_ready and not pieces[num_ready - 1]:
                num_ready -= 1
        ready, self._waiting = pieces[:num_ready], pieces[num_ready:]
        self._waiting_logprobs = () if logprobs is None else logprobs[num_ready:]
        self._check_seam("".join(ready))
        num_old = min(len(self.pieces) - self._position, num_ready)
        if list(ready[:num_old]) != self.pieces[self._position : self._position + num_old]:
            raise self._interrupted("written again, its text was different")
        self._position += num_ready
        new = ready[num_old:]
        self.pieces.extend(new)
        if draft.end is not None and self._position < len(self.pieces):
            raise self._interrupted("written again, its text was shorter")
        cached = draft.num_cached_tokens
        if cached is not None:  # of the prompt only, without our own text
            cached = min(cached, len(self.context.token_ids))
        piece_logprobs = None if logprobs is None else logprobs[num_old:num_ready]
        return Draft(new, draft.end, cached, logprobs=piece_logprobs)

    def _is_all_new(self, draft: Draft) -> bool:
        """Return whether a draft is passed on as it is, as nearly all are: nothing of it is held
        back or repeated, and no stop string can reach back to a break.
        """
        return (
            draft.token_ids is not None
            and draft.end is None
            and not self._waiting
            and not self._seam_left
            and self._position == len(self.pieces)
        )

    def _check_seam(self, text: str) -> None:
        """Look for stop strings across the seam: a server searches only what it writes itself."""
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
