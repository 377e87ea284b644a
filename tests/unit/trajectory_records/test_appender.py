"""Tests the thread that waits for the disk: order, failures, disks that do not answer."""

import asyncio
import errno
import logging
import os
import threading
from collections import deque
from pathlib import Path

import pytest

from synth_client.files.record_file import read_records
from tests.support.records import record_of, unbroken
from trajectory_records.appender import Appender, open_appender
from trajectory_records.record import Record
from trajectory_records.record_writer import RecordWriter


class ControlledWriter(RecordWriter):
    """Fails or waits when the test says so, as a disk may."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.fails = False
        self.gate = threading.Event()
        self.gate.set()
        self.batches: list[int] = []

    def append(self, lines: deque[bytes]) -> None:
        self.gate.wait()
        if self.fails:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.batches.append(len(lines))
        super().append(lines)


def record(number: int) -> Record:
    return record_of(unbroken(id=f"r{number}"))


def ids(path: Path) -> list[str]:
    return [record.id for record in read_records(path)]


@pytest.fixture
def writer(tmp_path: Path) -> ControlledWriter:
    return ControlledWriter(tmp_path / "records.jsonl")


async def test_records_come_in_order_and_share_the_wait_for_the_disk(
    writer: ControlledWriter,
) -> None:
    async with open_appender(writer) as appender:
        writer.gate.clear()
        written = [appender.add(record(number)) for number in range(50)]
        assert not any(one.done() for one in written)
        writer.gate.set()
        assert await asyncio.gather(*written) == [None] * 50
    assert ids(writer.path) == [f"r{number}" for number in range(50)]
    assert len(writer.batches) <= 2


async def test_a_record_is_written_although_nobody_waits_for_it_any_more(
    writer: ControlledWriter,
) -> None:
    async with open_appender(writer) as appender:
        writer.gate.clear()
        first = appender.add(record(0))
        waiting = asyncio.create_task(appender.within_limit(appender.add(record(1))))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        appender.add(record(2)).cancel()
        writer.gate.set()
        assert await first is None
    assert ids(writer.path) == ["r0", "r1", "r2"]


async def test_a_failure_is_said_and_its_records_are_written_once_the_disk_has_room(
    writer: ControlledWriter, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_appender(writer) as appender:
        assert await appender.check() is None
        writer.fails = True
        problem = f"{writer.path}: No space left on device"
        assert await appender.add(record(0)) == problem
        assert await appender.add(record(1)) == problem
        assert await appender.check() == problem
        writer.fails = False
        assert await appender.check() is None
        assert await appender.add(record(2)) is None
    assert ids(writer.path) == ["r0", "r1", "r2"]
    errors = [one.message for one in caplog.records if one.levelno == logging.ERROR]
    assert errors == [f"records cannot be written: {problem}"], "said once"


async def test_checks_at_the_same_time_try_the_disk_once(writer: ControlledWriter) -> None:
    async with open_appender(writer) as appender:
        writer.fails = True
        await appender.add(record(0))
        writer.fails = False
        assert await asyncio.gather(*(appender.check() for _ in range(9))) == [None] * 9
    assert writer.batches == [1]


async def test_a_disk_that_does_not_answer_counts_as_failed_until_it_does(
    writer: ControlledWriter,
) -> None:
    writer.prepare()
    appender = Appender(writer, stall_s=0.05)
    writer.gate.clear()
    stalled = f"{writer.path}: the disk has not answered for 0.05 s"
    written = appender.add(record(0))
    assert await appender.within_limit(written) == stalled
    assert await appender.check() == stalled
    writer.gate.set()
    assert await written is None
    assert await appender.check() is None
    await appender.close()
    assert ids(writer.path) == ["r0"]


async def test_what_cannot_be_written_at_the_end_is_logged(
    writer: ControlledWriter, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_appender(writer) as appender:
        writer.fails = True
        await asyncio.gather(appender.add(record(0)), appender.add(record(1)))
    said = [one.message for one in caplog.records]
    assert said[-1] == f"2 records are lost: {writer.path}: No space left on device"
