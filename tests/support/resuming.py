"""Scripts a writer whose streams break, and records what is asked for next."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from proxy.backends.base import Call, Context, Draft, Sampling, Segment
from proxy.backends.transport.http import UpstreamClient
from proxy.backends.transport.resume import ResumingWriter
from proxy.backends.transport.retry import RetryPolicy
from proxy.errors import ContextExceeded, UpstreamError, UpstreamUnreachable
from tests.support.clock import turns
from tests.support.scripted import ScriptedBackend

GREEDY, SEEDED, FREE = Sampling(0.0), Sampling(0.7, seed=5), Sampling(0.7)

Item = Draft | UpstreamError | ContextExceeded

BROKEN: Item = UpstreamUnreachable("up", "it broke")

END: Item = Draft((), "stop", 7)

PROMPT = (100, 101)


async def no_wait(_: float) -> None:
    await asyncio.sleep(0)


QUICK = RetryPolicy(attempts=3, total_s=36_000, sleep=no_wait)


def spelt(text: str) -> Item:
    """One token a character, of the character's id."""
    return Draft(tuple(text), token_ids=tuple(map(ord, text)))


def unspelt(*pieces: str) -> Item:
    return Draft(pieces)


@dataclass
class ScriptedWriter(ScriptedBackend):
    """Each write brings its own drafts, then fails or ends."""

    scripts: list[Sequence[Item]] = field(default_factory=list)
    asked: list[tuple[list[int], int]] = field(default_factory=list)  # type: ignore[assignment]
    num_open: int = 0

    async def write(
        self, context: Context, sampling: Sampling, max_tokens: int, call: Call
    ) -> AsyncGenerator[Draft]:
        self.asked.append((list(context.token_ids), max_tokens))
        script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
        self.num_open += 1
        try:
            for item in script:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            self.num_open -= 1


@dataclass
class Scene:
    client: UpstreamClient
    retried: list[str]

    async def drafts(
        self, *scripts: Sequence[Item], sampling: Sampling = GREEDY, max_tokens: int = 20
    ) -> list[Draft]:
        """The text that comes out; `self.asked` holds the requests."""
        self.writer = ScriptedWriter(scripts=list(scripts))
        self.out: list[Draft] = []
        context = Context(Segment("", PROMPT))
        writer = ResumingWriter(self.writer, self.client)
        async for draft in writer.write(context, sampling, max_tokens, Call("s")):
            self.out.append(draft)
        assert self.writer.num_open == 0
        return self.out

    async def drafts_with_pauses(
        self, *scripts: Sequence[Item], sampling: Sampling = GREEDY
    ) -> list[int]:
        """After each draft the gate is shut, and opened as soon as the server writes no more.

        What was open at the server each time that the next draft was wanted.
        """
        self.writer = ScriptedWriter(scripts=list(scripts))
        self.out = []
        gate = asyncio.Event()
        open_then: list[int] = []
        gate.set()
        writer = ResumingWriter(self.writer, self.client)
        drafts = writer.write_gated(Context(Segment("", PROMPT)), sampling, 20, Call("s"), gate)
        async with aclosing(drafts):
            draft: Draft | None = await anext(drafts)
            while draft is not None:
                self.out.append(draft)
                gate.clear()
                following = asyncio.ensure_future(anext(drafts, None))
                await turns()
                open_then.append(self.writer.num_open)
                gate.set()
                draft = await following
        return open_then

    @property
    def asked(self) -> list[tuple[str, int]]:
        """The text after the prompt, and the number of tokens that were wanted."""
        asked = self.writer.asked
        assert all(tuple(ids[:2]) == PROMPT for ids, _ in asked)
        return [("".join(map(chr, ids[2:])), num) for ids, num in asked]

    @property
    def text(self) -> str:
        return "".join(piece for draft in self.out for piece in draft.pieces)
