"""Runs in Ray's processes: the actors that ask, and the mailbox between them and the run.

A worker does the same as the local executor, with the same pool, limiter and client. Its outcomes
pass through the mailbox to the one process with the journal, and count once they are in it.
"""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias
from uuid import uuid4

import orjson

from synth_client.asking.errors import SynthesisError
from synth_client.asking.limiter import wait_for
from synth_client.asking.pool import Load, Outcome, Pool
from synth_client.asking.servers import Servers
from synth_client.errors import ClientError
from synth_client.questions.question import Question, Synthesis, Unit
from trajectory_records.record import Message

Handle: TypeAlias = Any
"""A handle to an actor, which Ray does not type."""

_REPORT_EVERY_S: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """The settings of every worker; the numbers of requests are one worker's share."""

    servers: Servers
    synthesis: Synthesis


@dataclass(frozen=True, slots=True)
class Report:
    """A worker's load, and the attempts that failed since its last report."""

    worker: str
    load: Load
    errors: tuple[SynthesisError, ...]


@dataclass(frozen=True, slots=True)
class Aborted:
    """The server refuses the run as a whole, with the reason."""

    reason: str


Letter = Outcome | Report | Aborted


class Mailbox:
    """An asynchronous actor: workers post letters, the run takes them.

    It also knows the blocks under way and which of their units have an outcome, because Ray repeats
    the block of a lost worker.
    """

    def __init__(self) -> None:
        self._letters: list[tuple[Letter, asyncio.Future[None]]] = []
        self._taken: list[asyncio.Future[None]] = []
        self._came = asyncio.Event()
        self._draining = asyncio.Event()
        self._posted: set[bytes] = set()
        self._blocks: set[bytes] = set()
        self._ended = asyncio.Event()

    async def post(self, letter: Letter) -> None:
        """Post a letter; returns when the run has handled it, so an outcome is then on disk."""
        if isinstance(letter, Outcome):
            self._posted.add(letter.unit.key)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._letters.append((letter, done))
        self._came.set()
        await done

    async def take(self) -> list[Letter]:
        """Return the new letters, at least one. Those of the last call then count as handled."""
        for done in self._taken:
            done.set_result(None)
        self._taken = []
        await self._came.wait()
        self._came.clear()
        taken, self._letters = self._letters, []
        self._taken = [done for _, done in taken]
        return [letter for letter, _ in taken]

    async def begin(self, keys: list[bytes]) -> set[bytes]:
        """Begin a block, and return the keys of its units that are still to be asked."""
        if self._draining.is_set():
            return set()
        self._blocks.add(keys[0])
        return set(keys) - self._posted

    async def end(self, keys: list[bytes]) -> None:
        """Note that a block is finished."""
        self._posted.difference_update(keys)
        self._blocks.discard(keys[0])
        self._ended.set()

    async def draining(self) -> None:
        """Wait until `drain` is called."""
        await self._draining.wait()

    async def drain(self) -> None:
        """Let the workers begin nothing more. Returns when nothing is under way."""
        self._draining.set()
        while self._blocks:
            self._ended.clear()
            await self._ended.wait()


class Worker:
    """Asks the questions of many blocks at a time, in the one event loop of its actor."""

    def __init__(self, settings: WorkerSettings, mailbox: Handle) -> None:
        self._mailbox = mailbox
        self._name = uuid4().hex
        self._limiter = settings.servers.limiter()
        self._client = settings.servers.client(settings.synthesis)
        self._pools: set[Pool] = set()
        self._errors: list[SynthesisError] = []
        self._draining = asyncio.Event()
        self._helpers: list[asyncio.Task[None]] = []

    async def __call__(self, block: Any) -> Any:  # noqa: ANN401 - Arrow tables are not typed
        """Ask the remaining units of a block. Returns a table with the number of its units."""
        import pyarrow as pa  # noqa: PLC0415 - comes only with the extra

        if not self._helpers:
            self._helpers = [
                asyncio.create_task(self._watch()),
                asyncio.create_task(self._report_regularly()),
            ]
        rows = block.to_pylist()
        if not rows:
            return pa.table({"num_units": [0]})
        keys = [row["key"] for row in rows]
        left = await self._mailbox.begin.remote(keys)
        await self._ask([unit_of(row) for row in rows if row["key"] in left])
        await self._mailbox.end.remote(keys)
        return pa.table({"num_units": [len(rows)]})

    async def _ask(self, units: list[Unit]) -> None:
        pool = Pool(
            self._client.synthesise,
            self._limiter,
            num_workers=len(units),
            on_error=self._errors.append,
        )
        if self._draining.is_set():
            pool.drain()
        self._pools.add(pool)
        try:
            await pool.run(iter(units), self._mailbox.post.remote)
        except ClientError as error:
            await self._mailbox.post.remote(Aborted(str(error)))
        finally:
            self._pools.remove(pool)
        await self._report()

    async def _watch(self) -> None:
        await self._mailbox.draining.remote()
        self._draining.set()
        for pool in self._pools:
            pool.drain()

    async def _report_regularly(self) -> None:
        while not self._draining.is_set():
            await self._report()
            await wait_for(self._draining, _REPORT_EVERY_S)

    async def _report(self) -> None:
        errors = tuple(self._errors)
        self._errors.clear()
        limiter = self._limiter
        load = Load(
            num_active=limiter.num_active,
            num_waiting=sum(pool.load.num_waiting for pool in self._pools),
            limit=limiter.limit,
            num_cuts=limiter.num_cuts,
        )
        await self._mailbox.post.remote(Report(self._name, load, errors))


def row_of(unit: Unit) -> dict[str, bytes | str | int | None]:
    """Return a unit as a row of a table."""
    question = unit.question
    return {
        "key": unit.key,
        "sample": unit.sample,
        "id": question.id,
        "messages": orjson.dumps([message.model_dump() for message in question.messages]),
        "answer": question.answer,
    }


def unit_of(row: dict[str, Any]) -> Unit:
    """Return the unit that `row_of` turned into this row."""
    messages: Iterable[dict[str, str]] = orjson.loads(row["messages"])
    asked = tuple(Message(**message) for message in messages)
    return Unit(Question(row["id"], asked, row["answer"]), row["sample"], row["key"])
