"""Holds what the writes of several corrections share: their context, their losses, their reader."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from proxy.backends.base import Context
from proxy.core.types import FoundAnswer
from proxy.engine.corrections.answers import AnswerReader
from proxy.errors import MotabError, UpstreamError

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Candidates:
    """The corrections of one breach, of which one is kept."""

    reader: AnswerReader | None = None
    reference: str | None = None
    """The right answer to the question, if it is known."""
    _lost: list[UpstreamError] = field(init=False, default_factory=list)
    _context: Context | None = field(init=False, default=None)
    _asking: asyncio.Lock = field(init=False, default_factory=asyncio.Lock)

    async def context(self, make: Callable[[], Awaitable[Context]]) -> Context:
        """Return the context of all of them, which the first one makes: a context that is made
        again changes under the writes that have it.
        """
        async with self._asking:
            if self._context is None:
                self._context = await make()
            return self._context

    def lose(self, session_id: str, error: UpstreamError) -> None:
        """Do without one of them."""
        _log.warning("%s: one of the corrections is lost: %s", session_id, error)
        self._lost.append(error)

    async def read(self, texts: tuple[str, ...]) -> tuple[FoundAnswer, ...]:
        """Return the answers of those that are not lost. Raises the first error if all are."""
        if not texts:
            raise self._lost[0]
        if self.reader is None:
            raise MotabError("nothing reads the answers of this trajectory; please report this")
        return await self.reader.read(texts, self.reference)
