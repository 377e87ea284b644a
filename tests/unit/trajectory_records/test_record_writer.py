"""Tests the file of records: turns of several writers, the next file, and what crashes leave."""

import errno
import multiprocessing
import os
import signal
import threading
from collections import deque
from pathlib import Path
from typing import Any

import pytest

from synth_client.errors import InputError
from synth_client.files.record_file import read_records
from tests.support.disk import watch_disk
from tests.support.patience import PATIENCE_S
from tests.support.records import record_of, unbroken
from trajectory_records.record import RecordError
from trajectory_records.record_writer import RecordWriter


def line(number: int) -> bytes:
    return record_of(unbroken(id=f"r{number:04}")).to_json_line()


def ids(path: Path) -> list[str]:
    return [record.id for record in read_records(path)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "records.jsonl"


def prepared(path: Path, max_bytes: int | None = None) -> RecordWriter:
    writer = RecordWriter(path, max_bytes)
    writer.prepare()
    return writer


def test_lines_are_appended_and_on_disk_before_they_leave_the_queue(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watch_disk(monkeypatch)
    writer = prepared(path)
    assert seen == [("sync", "folder")]
    lines = deque([line(0), line(1)])
    writer.append(lines)
    assert seen[1:] == [("sync", "records.jsonl")]
    assert not lines
    writer.append(deque([line(2)]))
    assert ids(path) == ["r0000", "r0001", "r0002"]


def test_a_file_that_is_there_is_continued(path: Path) -> None:
    prepared(path).append(deque([line(0)]))
    prepared(path).append(deque([line(1)]))
    assert ids(path) == ["r0000", "r0001"]


@pytest.mark.parametrize("cut", [1, 2, 100, -2])
def test_a_line_that_a_kill_has_torn_costs_no_other(path: Path, cut: int) -> None:
    writer = prepared(path)
    writer.append(deque([line(0), line(1)]))
    with path.open("ab") as file:
        file.write(line(2)[:cut])
    assert ids(path) == ["r0000", "r0001"], "the reader skips it"
    writer.append(deque([line(3)]))
    assert ids(path) == ["r0000", "r0001", "r0003"]
    assert path.read_bytes() == line(0) + line(1) + line(3)


@pytest.mark.parametrize("torn", [b"\0" * 70_000, b'{"id":' + b"x" * 200_000, b"\xff\xfe"])
def test_whatever_a_power_cut_leaves_behind_the_last_line_is_removed(
    path: Path, torn: bytes
) -> None:
    prepared(path).append(deque([line(0)]))
    with path.open("ab") as file:
        file.write(torn)
    assert ids(path) == ["r0000"]
    prepared(path)
    assert path.read_bytes() == line(0)


def test_a_torn_first_line_is_removed_too(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(line(0)[:50])
    assert ids(path) == []
    prepared(path).append(deque([line(1)]))
    assert ids(path) == ["r0001"]


def test_a_last_line_that_lacks_only_its_newline_is_kept(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(line(0) + line(1).rstrip(b"\n"))
    assert ids(path) == ["r0000", "r0001"]
    prepared(path).append(deque([line(2)]))
    assert ids(path) == ["r0000", "r0001", "r0002"]


def test_a_torn_line_between_others_is_an_error_of_the_file(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(line(0) + line(1)[:40] + b"\n" + line(2))
    with pytest.raises(InputError, match="line 2: invalid JSON"):
        ids(path)


@pytest.mark.parametrize(
    "content",
    [b"server:\n  port: 8800\n", b"server:", b'{"question": "How many?"}\n', b"\0\0\0", b"\n"],
)
def test_a_file_of_something_else_is_refused_and_left_alone(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(RecordError, match="line 1: the file holds something else than records"):
        RecordWriter(path).prepare()
    assert path.read_bytes() == content


def test_a_folder_or_a_path_under_a_file_cannot_be_written(path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        RecordWriter(path).prepare()
    (path / "file").touch()
    with pytest.raises((NotADirectoryError, FileExistsError)):
        RecordWriter(path / "file" / "records.jsonl").prepare()


def parts(path: Path) -> dict[str, list[str]]:
    return {part.name: ids(part) for part in sorted(path.parent.glob("*.jsonl"))}


def test_the_next_file_begins_before_a_line_that_would_make_it_too_large(path: Path) -> None:
    size = len(line(0))
    writer = prepared(path, max_bytes=2 * size)
    writer.append(deque(line(number) for number in range(5)))
    writer.append(deque([line(5), line(6)]))
    assert parts(path) == {
        "records.000001.jsonl": ["r0000", "r0001"],
        "records.000002.jsonl": ["r0002", "r0003"],
        "records.000003.jsonl": ["r0004", "r0005"],
        "records.jsonl": ["r0006"],
    }


def test_a_line_larger_than_a_file_has_one_of_its_own(path: Path) -> None:
    writer = prepared(path, max_bytes=10)
    writer.append(deque([line(0), line(1)]))
    assert parts(path) == {"records.000001.jsonl": ["r0000"], "records.jsonl": ["r0001"]}


def test_the_next_file_takes_no_name_that_is_taken(path: Path) -> None:
    prepared(path, max_bytes=1).append(deque([line(0)]))
    (path.parent / "records.000007.jsonl").write_bytes(line(7))
    (path.parent / "records.failed.jsonl").touch()
    prepared(path, max_bytes=1).append(deque([line(1)]))
    assert (path.parent / "records.000008.jsonl").read_bytes() == line(0)


def fill_disk(monkeypatch: pytest.MonkeyPatch, *, after: int) -> None:
    """Let the next write end after some bytes and fail once, as on a full disk."""
    write, left = os.write, [after, 0]

    def limited(descriptor: int, content: Any) -> int:
        if not left or Path(f"/proc/self/fd/{descriptor}").readlink().suffix != ".jsonl":
            return write(descriptor, content)
        if num := left.pop(0):
            return write(descriptor, bytes(content)[:num])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", limited)


def test_a_full_disk_leaves_the_file_whole_and_the_lines_in_the_queue(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = prepared(path)
    writer.append(deque([line(0)]))
    fill_disk(monkeypatch, after=len(line(1)) + 7)
    lines = deque([line(1), line(2)])
    with pytest.raises(OSError, match="No space left"):
        writer.append(lines)
    assert list(lines) == [line(1), line(2)]
    assert path.read_bytes() == line(0)
    writer.append(lines)
    assert ids(path) == ["r0000", "r0001", "r0002"]


def test_an_fsync_that_fails_leaves_no_line_that_would_come_twice(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = prepared(path)

    def broken(_descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    lines = deque([line(0)])
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", broken)
        with pytest.raises(OSError, match="Input/output"):
            writer.append(lines)
    writer.append(lines)
    assert ids(path) == ["r0000"]


def test_a_writer_waits_for_another_that_is_in_the_middle_of_a_line(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, half, more = os.write, threading.Event(), threading.Event()

    def halting(descriptor: int, content: Any) -> int:
        if half.is_set() or Path(f"/proc/self/fd/{descriptor}").readlink().suffix != ".jsonl":
            return write(descriptor, content)
        num = write(descriptor, bytes(content)[: len(content) // 2])
        half.set()
        more.wait(PATIENCE_S)
        return num

    first, second = prepared(path), prepared(path)
    monkeypatch.setattr(os, "write", halting)
    slow = threading.Thread(target=first.append, args=(deque([line(0)]),))
    quick = threading.Thread(target=second.append, args=(deque([line(1)]),))
    slow.start()
    assert half.wait(PATIENCE_S)
    quick.start()
    quick.join(0.3)  # time enough to do harm
    more.set()
    slow.join()
    quick.join()
    assert ids(path) == ["r0000", "r0001"]


def write_for_ever(path: Path, writer: int, max_bytes: int) -> None:
    file = RecordWriter(path, max_bytes)
    for number in range(1_000_000):
        name = f"w{writer}-{number}"
        file.append(deque([record_of(unbroken(id=name)).to_json_line()]))
        with path.with_suffix(f".said{writer}").open("a") as said:
            said.write(f"{name}\n")


def said_by(path: Path, writer: int) -> list[str]:
    file = path.with_suffix(f".said{writer}")
    return file.read_text().splitlines() if file.exists() else []


def test_of_several_writers_that_are_killed_every_finished_line_is_there_once(path: Path) -> None:
    max_bytes = 20 * len(line(0))
    prepared(path, max_bytes)
    spawned = multiprocessing.get_context("spawn")
    writers = [
        spawned.Process(target=write_for_ever, args=(path, number, max_bytes))
        for number in range(3)
    ]
    for process in writers:
        process.start()
    try:
        for number, process in enumerate(writers):
            while len(said_by(path, number)) < 30:
                assert process.is_alive()
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
    finally:
        for process in writers:
            process.kill()
            process.join()
    prepared(path, max_bytes)
    found = [name for names in parts(path).values() for name in names]
    assert len(set(found)) == len(found)
    for number in range(3):
        # The last may be in the file without having been said.
        mine = [name for name in found if name.startswith(f"w{number}-")]
        assert mine == [f"w{number}-{i}" for i in range(len(mine))]
        assert len(mine) - len(said_by(path, number)) in {0, 1}
    assert len(parts(path)) > 3
