import asyncio
import logging
import os
from pathlib import Path

import pytest

from synth_client.errors import OutputError
from synth_client.files.journal import FAILURE, RECORD, Entry, Journal, open_journal

KEYS = [bytes([i]) * 16 for i in range(200)]


def entry(i: int, content: bytes | None = None) -> Entry:
    return Entry(KEYS[i], RECORD, content or b'{"id":"%d","output":"..."}' % i)


async def contents(path: Path) -> dict[bytes, bytes]:
    """The contents of a reopened journal, by key."""
    async with open_journal(path) as journal:
        return held(journal)


def held(journal: Journal) -> dict[bytes, bytes]:
    places = {key: journal.get(key) for key in KEYS}
    return {key: journal.read(place) for key, place in places.items() if place is not None}


async def test_what_was_appended_is_there_again(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    async with open_journal(path) as journal:
        async with asyncio.TaskGroup() as group:
            for i in range(100):
                group.create_task(journal.append(entry(i)))
        now = held(journal)
    assert len(now) == 100
    assert now[KEYS[42]] == entry(42).content
    assert await contents(path) == now


async def test_an_entry_is_fsynced_before_it_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = 0
    fsync = os.fsync

    def counted(descriptor: int) -> None:
        nonlocal synced
        fsync(descriptor)
        synced = os.fstat(descriptor).st_size

    async with open_journal(tmp_path / "journal") as journal:
        monkeypatch.setattr(os, "fsync", counted)
        for i in range(3):
            await journal.append(entry(i))
            assert synced == sum(len(entry(j).line()) for j in range(i + 1))


async def test_entries_that_come_together_share_an_fsync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_synced = 0

    def counted(_descriptor: int) -> None:
        nonlocal num_synced
        num_synced += 1

    async with open_journal(tmp_path / "journal") as journal:
        monkeypatch.setattr(os, "fsync", counted)
        async with asyncio.TaskGroup() as group:
            for i in range(100):
                group.create_task(journal.append(entry(i)))
    assert num_synced <= 3


async def test_failures_of_an_earlier_run_are_not_there_any_more(tmp_path: Path) -> None:
    async with open_journal(tmp_path / "journal") as journal:
        await journal.append(Entry(KEYS[0], FAILURE, b"{}"))
        await journal.append(entry(1))
        assert held(journal).keys() == {KEYS[0], KEYS[1]}
    assert (await contents(tmp_path / "journal")).keys() == {KEYS[1]}


async def test_the_first_record_is_known(tmp_path: Path) -> None:
    async with open_journal(tmp_path / "journal") as journal:
        assert journal.first is None
        await journal.append(Entry(KEYS[0], FAILURE, b"{}"))
        await journal.append(entry(1))
        await journal.append(entry(2))
    async with open_journal(tmp_path / "journal") as journal:
        assert journal.first == journal.get(KEYS[1])


async def write_three(path: Path) -> list[bytes]:
    made = [entry(0), entry(1, b'{"text":"a \xc3\xa9 b"}'), entry(2)]
    async with open_journal(path) as journal:
        for one in made:
            await journal.append(one)
    return [one.line() for one in made]


@pytest.fixture
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Silence the warnings, which would come thousands of times."""
    caplog.set_level(logging.CRITICAL, "synth_client.files.journal")


@pytest.mark.usefixtures("quiet")
async def test_cut_at_any_byte_it_keeps_every_whole_entry_and_goes_on(tmp_path: Path) -> None:
    lines = await write_three(tmp_path / "journal")
    whole = b"".join(lines)
    ends = [len(lines[0]), len(lines[0] + lines[1]), len(whole)]
    for cut in range(len(whole) + 1):
        path = tmp_path / "cut"
        path.write_bytes(whole[:cut])
        async with open_journal(path) as journal:
            # The newline may be missing: the length says where an entry ends.
            kept = sum(end - 1 <= cut for end in ends)
            assert held(journal).keys() == set(KEYS[:kept]), cut
            assert journal.num_damaged == 0
            await journal.append(entry(3))
        assert path.read_bytes() == b"".join(lines[:kept]) + entry(3).line(), cut
        assert (await contents(path)).keys() == {*KEYS[:kept], KEYS[3]}, cut


@pytest.mark.usefixtures("quiet")
async def test_a_flipped_bit_costs_the_entry_that_it_hit_and_no_other(tmp_path: Path) -> None:
    lines = await write_three(tmp_path / "journal")
    whole = b"".join(lines)
    path = tmp_path / "flipped"
    for place in range(len(whole)):
        hit = 0 if place < len(lines[0]) else 1 if place < len(lines[0] + lines[1]) else 2
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        found = await contents(path)
        assert found.keys() >= {KEYS[i] for i in range(3) if i != hit}, place
        # Damage to a newline costs nothing at all.
        assert (KEYS[hit] in found) == (whole[place : place + 1] == b"\n"), place


async def test_damage_to_both_ends_of_an_entry_does_not_reach_the_next(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = await write_three(tmp_path / "journal")
    damaged = bytearray(b"".join(lines))
    damaged[0] ^= 1
    damaged[len(lines[0]) - 1] ^= 1
    (tmp_path / "journal").write_bytes(damaged)
    assert (await contents(tmp_path / "journal")).keys() == {KEYS[1], KEYS[2]}


async def test_damage_is_told_with_its_place(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = await write_three(tmp_path / "journal")
    damaged = bytearray(b"".join(lines))
    damaged[len(lines[0]) + 70] ^= 1
    (tmp_path / "journal").write_bytes(damaged)
    async with open_journal(tmp_path / "journal") as journal:
        assert journal.num_damaged == 1
    begin, end = len(lines[0]), len(lines[0] + lines[1])
    assert f"bytes {begin} to {end} are damaged and skipped" in caplog.text


async def test_a_cut_line_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = await write_three(tmp_path / "journal")
    (tmp_path / "journal").write_bytes(b"".join(lines)[:-9])
    await contents(tmp_path / "journal")
    assert f"the last line is incomplete ({len(lines[2]) - 9} bytes) and is removed" in caplog.text


async def test_where_nothing_can_be_written_all_who_wait_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal"
    pwrite = os.pwrite

    def half(descriptor: int, content: bytes, place: int) -> int:
        pwrite(descriptor, bytes(content)[:7], place)
        raise OSError(28, "No space left on device")

    async def fill_the_disk() -> None:
        async with open_journal(path) as journal:
            await journal.append(entry(0))
            monkeypatch.setattr(os, "pwrite", half)
            async with asyncio.TaskGroup() as group:
                for i in (1, 2):
                    group.create_task(journal.append(entry(i)))

    with pytest.raises(OutputError, match=f"{path}: No space left on device"):
        await fill_the_disk()
    monkeypatch.undo()
    assert path.read_bytes() == entry(0).line()


async def test_a_record_that_is_megabytes_long_is_read_back(tmp_path: Path) -> None:
    long = b'"%s"' % (b"x" * 3_000_000)
    async with open_journal(tmp_path / "journal") as journal:
        await journal.append(entry(0, long))
        await journal.append(entry(1))
    found = await contents(tmp_path / "journal")
    assert (found[KEYS[0]], found[KEYS[1]]) == (long, entry(1).content)
