"""Tokenises steps as parts of one running text, in which a token counts for the step it ends in."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TypeAlias

from proxy.backends.base import Call, Segment
from proxy.core.thinking import THOUGHT_TAGS, StepPart
from proxy.engine.borders import Piece, behind_of, divided
from proxy.engine.upstream import Upstream
from proxy.errors import MotabError

Parts: TypeAlias = tuple[StepPart, ...]


@dataclass(frozen=True, slots=True)
class StepTokens:
    """One segment per step; `next_id` is the token after them, if the last step's end showed it."""

    segments: list[Segment]
    next_id: int | None


@dataclass(slots=True)
class _Words:
    """Words without markup between them: `texts[i]` belongs to step `steps[i]`."""

    before: str = ""
    """The words before them, as far as their first token may begin there."""
    texts: list[str] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    after: str = ""
    """The words after them, as far as they decide which tokens end before."""
    borders: list[int] = field(init=False, default_factory=list)
    pieces: list[Piece] = field(init=False, default_factory=list)

    def divide(self) -> None:
        """Set `borders` and `pieces`, without the piece that begins after the last step."""
        text = "".join((self.before, *self.texts, self.after))
        self.borders = list(accumulate(map(len, self.texts), initial=len(self.before)))
        self.pieces = divided(text, self.borders)
        if self.after and len(text) - len(self.pieces[-1].text) >= self.borders[-1]:
            del self.pieces[-1]

    def place(self, offset: int) -> int:
        """Return the index in `texts` of the text at that offset: -1 before, its length after."""
        return bisect_right(self.borders, offset) - 1


@dataclass(frozen=True, slots=True)
class MappedStep:
    """A step as the model reads it. `ahead` is the text after it that decides which tokens end in
    it; if there is none, a token ends where the step does.
    """

    parts: Parts
    ahead: str


async def tokens_of(
    upstream: Upstream,
    steps: Sequence[MappedStep],
    earlier: Iterable[MappedStep],
    after: str,
    call: Call,
) -> StepTokens:
    """Return the tokens of `steps`, which follow the steps `earlier`, the nearest first.

    `after` is the last step's `ahead`, as the model reads it.
    """
    items = list(_items(steps, earlier, after))
    encoded = await _encoded(upstream, [i for i in items if isinstance(i, _Words)], call)
    token_ids: list[list[int]] = [[] for _ in steps]
    next_id: int | None = None
    for item in items:
        if isinstance(item, tuple):
            step, text = item
            token_ids[step] += (await markup_of(upstream, text, call)).token_ids
            continue
        offset = 0
        for segment in (part for _ in item.pieces for part in next(encoded)):
            place = item.place(offset)
            offset += len(segment.text)
            if place >= len(item.texts):
                next_id = next(iter(segment.token_ids), None)
            elif place >= 0:
                token_ids[item.steps[place]] += segment.token_ids
    texts = ("".join(part.text for part in step.parts) for step in steps)
    segments = [Segment(text, tuple(ids)) for text, ids in zip(texts, token_ids, strict=True)]
    return StepTokens(segments, next_id)


async def markup_of(upstream: Upstream, text: str, call: Call) -> Segment:
    """Return the tokens of markup."""
    if upstream.markup is None:
        raise MotabError(f"'{upstream.name}' reads no markup; please report this")
    if text in THOUGHT_TAGS and (tag := await upstream.tag(text, call)) is not None:
        return tag
    return await upstream.markup.markup(text, call)


def _items(
    steps: Sequence[MappedStep], earlier: Iterable[MappedStep], after: str
) -> Iterator[_Words | tuple[int, str]]:
    """Return each markup with its step's index, and the words between markups and between borders
    at which a token ends, in order.
    """
    words: _Words | None = None
    for index, step in enumerate(steps):
        for part in step.parts:
            if part.markup:
                if words is not None:
                    yield words
                yield index, part.text
                words = None
                continue
            if words is None:
                is_first = not index and part is step.parts[0]
                words = _Words(behind_of(_words_before(earlier), part.text) if is_first else "")
            words.texts.append(part.text)
            words.steps.append(index)
        if words is not None and not step.ahead:
            yield words
            words = None
    if words is not None:
        words.after = after
        yield words


def _words_before(earlier: Iterable[MappedStep]) -> Iterator[str]:
    """Return the texts back to the last markup or the last end of a token, the nearest first."""
    for step in earlier:
        if not step.ahead:
            return
        for part in reversed(step.parts):
            if part.markup:
                return
            yield part.text


async def _encoded(
    upstream: Upstream, runs: Sequence[_Words], call: Call
) -> Iterator[Sequence[Segment]]:
    """Return the tokens of each piece, in order."""
    for words in runs:
        words.divide()
    pieces = [piece for words in runs for piece in words.pieces]
    whole = [piece.text for piece in pieces if not piece.borders]
    cut = [piece.parts for piece in pieces if piece.borders]
    wholes = iter(await upstream.reader.encode(whole, call) if whole else ())
    cuts = iter(await upstream.reader.encode_running(cut, call) if cut else ())
    return iter([next(cuts) if piece.borders else (next(wholes),) for piece in pieces])
