"""Samples records for the trajectory viewer of a report, and packs them into chunks.

Only this file and `assets/report.js` know the format: an index with one short entry for each
trajectory, and chunks of whole trajectories, which the page unpacks when one of them is viewed.
"""

import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from synth_client.report.page import Block, block
from trajectory_records.record import Record
from trajectory_records.viewer.view import entry_of, view_of

_CHUNK_BYTES: Final = 512 * 1024


@dataclass(frozen=True, slots=True)
class _Sampled:
    ordinal: int
    entry: tuple[Any, ...]
    packed: bytes
    size: int


@dataclass(slots=True)
class Sample:
    """At most `max_size` records, compressed; every record is kept with the same probability.

    The same records in the same order give the same sample.
    """

    max_size: int
    num_seen: int = 0
    _kept: list[_Sampled] = field(default_factory=list)
    _random: random.Random = field(default_factory=lambda: random.Random(0))  # noqa: S311

    def add(self, record: Record) -> None:
        """Add a record, which may be kept."""
        ordinal = self.num_seen
        self.num_seen += 1
        slot = ordinal if ordinal < self.max_size else self._random.randrange(ordinal + 1)
        if slot >= self.max_size:
            return
        view = orjson.dumps(view_of(record))
        sampled = _Sampled(ordinal, entry_of(record), zlib.compress(view, 1), len(view))
        if slot == len(self._kept):
            self._kept.append(sampled)
        else:
            self._kept[slot] = sampled

    def __len__(self) -> int:
        return len(self._kept)

    def blocks(self) -> Iterator[Block]:
        """Yield the chunks `chunk-0`, `chunk-1`, ... and, last, the `index`."""
        index: list[tuple[Any, ...]] = []
        chunk: list[bytes] = []
        num_chunks = size = 0
        for sampled in sorted(self._kept, key=lambda one: one.ordinal):
            if size and size + sampled.size > _CHUNK_BYTES:
                yield _chunk(num_chunks, chunk)
                chunk, size, num_chunks = [], 0, num_chunks + 1
            index.append((*sampled.entry, num_chunks, len(chunk)))
            chunk.append(zlib.decompress(sampled.packed))
            size += sampled.size
        if chunk:
            yield _chunk(num_chunks, chunk)
        yield block("index", index)


def _chunk(number: int, views: list[bytes]) -> Block:
    return block(f"chunk-{number}", [orjson.Fragment(view) for view in views])
