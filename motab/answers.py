"""Reads and compares the answers of corrections for the proxy, by the client's rules."""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Final, Self

from proxy.core.types import FoundAnswer
from proxy.errors import MotabError, RequestError, first_error
from synth_client.errors import ClientError
from synth_client.judging.judgement import Judgement
from synth_client.judging.verifier import Verifier

# Each judges hundreds of answers a second, and needs some hundred megabytes.
_NUM_WORKERS: Final = 2


class JudgedAnswers:
    """Reads answers by one rule; a context manager. See `AnswerReader` in the proxy's engine.

    Nothing is started before several corrections are asked for. Raises `InputError` if there is no
    such rule.
    """

    def __init__(self, rule: str) -> None:
        self._verifier = Verifier(rule, num_workers=_NUM_WORKERS)
        self._starting = asyncio.Lock()
        self._has_started = False

    def __enter__(self) -> Self:
        self._verifier.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._verifier.__exit__(*error)

    async def start(self) -> None:
        """Load the rule. Raises `RequestError` if it cannot be loaded."""
        async with self._starting:
            if self._has_started:
                return
            try:
                await asyncio.to_thread(self._verifier.start)
            except (ClientError, OSError) as error:
                message = f"corrections must be 1 here, because none could be chosen: {error}"
                raise RequestError(message, param="motab.corrections") from error
            self._has_started = True

    async def read(self, texts: Sequence[str], reference: str | None) -> tuple[FoundAnswer, ...]:
        """Return the answers. Two are equal if the rule takes one for right where the other is the
        reference.
        """
        found = await self._all_judged([(text, reference) for text in texts])
        if reference is not None and any(one.correct for one in found):
            return tuple(FoundAnswer(one.predicted, one.correct) for one in found)
        groups = await self._groups(texts, [one.predicted for one in found])
        right = [None if reference is None else one.correct for one in found]
        read = zip(found, right, groups, strict=True)
        return tuple(FoundAnswer(one.predicted, is_right, group) for one, is_right, group in read)

    async def _groups(
        self, texts: Sequence[str], answers: Sequence[str | None]
    ) -> list[int | None]:
        """Return the group of each answer: that of the first group whose first answer equals it."""
        firsts: dict[str, int] = {}
        groups: list[int | None] = []
        for text, answer in zip(texts, answers, strict=True):
            if answer is None:
                groups.append(None)
                continue
            if answer not in firsts:
                judged = await self._all_judged([(text, first) for first in firsts])
                equal = (g for g, one in zip(firsts.values(), judged, strict=True) if one.correct)
                firsts[answer] = next(equal, len(firsts))
            groups.append(firsts[answer])
        return groups

    async def _all_judged(self, pairs: Iterable[tuple[str, str | None]]) -> list[Judgement]:
        try:
            async with asyncio.TaskGroup() as group:
                judging = [group.create_task(self._verifier.judged(*pair)) for pair in pairs]
        except ExceptionGroup as errors:
            error = first_error(errors)
            if not isinstance(error, ClientError | OSError):
                raise
            raise MotabError(f"answers cannot be read: {error}") from error
        return [one.result() for one in judging]
