"""Simulates the parts of a server that take time: places in the batch, prefill, decoding.

Left out: decoding is not slowed down by prefill or by a fuller batch, and nothing is evicted or
preempted unless a test says so. Both sides of every comparison get the same server.
"""

import asyncio
from array import array
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from benchmarks.simulator.cache import PrefixCache
from benchmarks.simulator.plan import read_context
from benchmarks.simulator.words import END, VOCABULARY


@dataclass(frozen=True, slots=True)
class Rates:
    """The speeds of a server.

    `decode_tok_s` is each stream's, `prefill_tok_s` the whole server's, one prompt after another.
    Prompts beyond `max_running` wait in order. `trip_s` is the network's delay and the server's
    fixed work, before every prompt. An event holds `stream_interval` tokens, but the first token
    has its own event.
    """

    decode_tok_s: float = 100.0
    prefill_tok_s: float = 10_000.0
    max_running: int = 512
    trip_s: float = 0.0
    stream_interval: int = 1


@dataclass(slots=True)
class Counters:
    """Counts of everything that a server did.

    `requests` asked for tokens or log-probabilities, one of them perhaps for several prompts;
    `cancelled` counts the prompts whose client left before the end.
    """

    requests: int = 0
    cancelled: int = 0
    tokens_prefilled: int = 0
    tokens_decoded: int = 0
    running: int = 0
    most_running: int = 0
    waiting: int = 0


@dataclass(frozen=True, slots=True)
class Reuse:
    """The part of the prefix cache that a request may use.

    `limit` is the last usable place, None for all; `page` is the cache's granularity.
    """

    limit: int | None = None
    page: int = 1


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens of a stream that are due together; `end` is `stop` or `length` in the last chunk."""

    ids: list[int]
    num_before: int
    end: str | None


@dataclass(slots=True)
class Running:
    """A request in the batch whose context is computed."""

    engine: "Engine"
    ids: "array[int]"
    num_cached: int
    ready_at: float

    async def write(self, max_tokens: int, interval: int) -> AsyncGenerator[Chunk]:
        """Yield the continuation when it is due, in chunks of `interval` tokens."""
        placed = read_context(self.ids)
        done, size = 0, 1
        while True:
            size = min(size, max_tokens - done)
            ids: list[int] = []
            for place in range(placed.place + done, placed.place + done + size):
                ids.append(placed.plan.token(place, errs=self.engine.errs))
                if ids[-1] == END:
                    break
            end = "stop" if ids[-1] == END else "length" if done + len(ids) == max_tokens else None
            yield await self._written(Chunk(ids, done, end))
            if end is not None:
                return
            done, size = done + len(ids), interval

    async def whole(self, max_tokens: int, stops: Sequence[str]) -> Chunk:
        """Return the whole continuation when its last token is due.

        A stop string, which must be a token here, ends it and is included.
        """
        placed = read_context(self.ids)
        ids: list[int] = []
        end: str | None = None
        while end is None:
            ids.append(placed.plan.token(placed.place + len(ids), errs=self.engine.errs))
            if ids[-1] == END or VOCABULARY[ids[-1]] in stops:
                end = "stop"
            elif len(ids) >= max_tokens:
                end = "length"
        return await self._written(Chunk(ids, 0, end))

    async def _written(self, chunk: Chunk) -> Chunk:
        """Return the chunk when it is due, as part of the text."""
        num = chunk.num_before + len(chunk.ids)
        await self.engine.until(self.ready_at + num / self.engine.rates.decode_tok_s)
        self.engine.counters.tokens_decoded += len(chunk.ids)
        self.ids.extend(chunk.ids)
        return chunk


@dataclass(slots=True)
class Engine:
    """One server. With `errs` it writes the breaches of the plans, as the student does."""

    rates: Rates
    errs: bool
    counters: Counters = field(init=False, default_factory=Counters)
    cache: PrefixCache = field(init=False, default_factory=PrefixCache)
    preemptions: int = field(init=False, default=0)
    """The number of next requests that are preempted, and lose the scores of their prompts."""
    _places: asyncio.Semaphore = field(init=False)
    _prefill_free_at: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        self._places = asyncio.Semaphore(self.rates.max_running)

    def forget(self) -> None:
        """Empty the cache and set the counters to 0. Nothing may be under way."""
        self.counters = Counters()
        self.cache = PrefixCache()

    def evict(self) -> None:
        """Empty the cache, as if others had needed the memory."""
        self.cache = PrefixCache()

    def is_preempted(self) -> bool:
        """Return whether a request is one of the next `preemptions`."""
        if not self.preemptions:
            return False
        self.preemptions -= 1
        return True

    @asynccontextmanager
    async def admitted(self, ids: Sequence[int], reuse: Reuse) -> AsyncGenerator[Running]:
        """Compute the context, in its turn. Computed and written tokens stay in the cache."""
        counters = self.counters
        try:
            if self.rates.trip_s:
                await asyncio.sleep(self.rates.trip_s)
            counters.waiting += 1
            try:
                await self._places.acquire()
            finally:
                counters.waiting -= 1
            try:
                counters.running += 1
                counters.most_running = max(counters.most_running, counters.running)
                running = await self._prefilled(ids, reuse)
                try:
                    yield running
                finally:
                    self.cache.add(running.ids)
            finally:
                counters.running -= 1
                self._places.release()
        except (asyncio.CancelledError, GeneratorExit):
            counters.cancelled += 1
            raise

    async def _prefilled(self, ids: Sequence[int], reuse: Reuse) -> Running:
        num_cached = self._num_cached(ids, reuse)
        num_new = len(ids) - num_cached
        self.counters.tokens_prefilled += num_new
        loop = asyncio.get_running_loop()
        began = max(loop.time(), self._prefill_free_at)
        self._prefill_free_at = began + num_new / self.rates.prefill_tok_s
        await self.until(self._prefill_free_at)
        self.cache.add(ids)
        return Running(self, array("I", ids), num_cached, loop.time())

    def _num_cached(self, ids: Sequence[int], reuse: Reuse) -> int:
        """At least the last token is computed, because it gives the next one's probabilities."""
        most = len(ids) - 1 if reuse.limit is None else min(reuse.limit, len(ids) - 1)
        return min(self.cache.longest_prefix(ids), most) // reuse.page * reuse.page if most else 0

    async def until(self, when: float) -> None:
        """Wait until a time of the loop's clock."""
        delay = when - asyncio.get_running_loop().time()
        if delay > 0:
            await asyncio.sleep(delay)
