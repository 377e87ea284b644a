"""A journal that is cut and damaged at random, again and again, against a plain dictionary."""

import asyncio
import logging
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synth_client.files.journal import RECORD, Entry, open_journal
from tests.support.cases import num_cases

KEYS = [bytes([i]) * 16 for i in range(256)]
# JSON holds no newline as such, but anything else.
CONTENTS = st.binary(max_size=40).map(lambda raw: raw.replace(b"\n", b" "))
LIVES = st.lists(st.tuples(st.lists(CONTENTS, max_size=6), st.floats(0, 1)), min_size=1, max_size=6)


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "synth_client.files.journal")


def size_of(path: Path) -> int:
    return path.stat().st_size


async def live_through(path: Path, lives: list[tuple[list[bytes], float]]) -> None:
    """Each life appends entries; a crash then cuts somewhere into what it has written."""
    expected: dict[bytes, bytes] = {}
    keys = iter(KEYS)
    for contents, share in lives:
        async with open_journal(path) as journal:
            found = {key: journal.get(key) for key in KEYS}
            kept = {key: journal.read(place) for key, place in found.items() if place}
            assert kept == expected
            before = size_of(path)
            ends = []
            for content in contents:
                entry = Entry(next(keys), RECORD, content)
                await journal.append(entry)
                ends.append((size_of(path), entry))
        cut = before + round(share * (size_of(path) - before))
        os.truncate(path, cut)
        # An entry is whole without its newline.
        expected |= {entry.key: entry.content for end, entry in ends if end - 1 <= cut}


@settings(max_examples=num_cases(150))
@given(LIVES)
def test_a_journal_has_exactly_what_was_whole_before_each_crash(
    lives: list[tuple[list[bytes], float]],
) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as name:
        asyncio.run(live_through(Path(name) / "journal", lives))
