import os
from pathlib import Path
from typing import Any

import pytest

from proxy.errors import RequestError
from proxy.page import run_files
from proxy.page.run_files import RunFiles
from tests.support.records import breached, record_of, unbroken


def written(path: Path, *records: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(record_of(fields).to_json_line() for fields in records))
    return path


def named(files: RunFiles) -> set[str]:
    return {file.name for file in files.found()}


def test_files_of_the_folder_and_of_the_server_are_found_and_nothing_else(tmp_path: Path) -> None:
    folder, served = tmp_path / "runs", tmp_path / "served" / "all.jsonl"
    for name in ("a.jsonl", "deep/b.jsonl", "a.failed.jsonl", "notes.txt"):
        written(folder / name, unbroken())
    written(served, unbroken())
    for name in ("all.000001.jsonl", "all.000002.jsonl", "other.jsonl"):
        written(served.with_name(name), unbroken())
    secret = written(tmp_path / "secret.jsonl", unbroken())
    (folder / "link.jsonl").symlink_to(secret)
    (folder / "out").symlink_to(tmp_path / "served")
    os.mkfifo(folder / "pipe.jsonl")
    assert named(RunFiles(served, folder)) == {
        "a.jsonl",
        "deep/b.jsonl",
        "server.records: all.jsonl",
        "server.records: all.000001.jsonl",
        "server.records: all.000002.jsonl",
    }


def test_the_latest_file_is_the_first_and_missing_ones_are_none(tmp_path: Path) -> None:
    assert RunFiles(tmp_path / "later.jsonl", tmp_path / "none").found() == []
    for number, name in enumerate(("b", "a", "c")):
        os.utime(written(tmp_path / f"{name}.jsonl", unbroken()), (number, number))
    assert [file.name for file in RunFiles(None, tmp_path).found()] == [
        "c.jsonl",
        "a.jsonl",
        "b.jsonl",
    ]


@pytest.mark.parametrize(
    "name", ["../secret.jsonl", "/etc/passwd", "runs/../../secret.jsonl", "", "a.jsonl\0"]
)
def test_a_path_is_no_name(tmp_path: Path, name: str) -> None:
    written(tmp_path / "secret.jsonl", unbroken())
    files = RunFiles(None, written(tmp_path / "runs" / "a.jsonl", unbroken()).parent)
    for read in (files.part, files.view):
        with pytest.raises(RequestError, match="there is no file"):
            read(name, 0)


def test_parts_follow_each_other_and_each_row_leads_to_its_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_files, "_MOST_ROWS", 3)
    records = [unbroken(id=f"r{number}", seconds=float(number)) for number in range(7)]
    written(tmp_path / "a.jsonl", *records)
    files = RunFiles(None, tmp_path)
    rows: list[list[Any]] = []
    sizes, start = [], 0
    while True:
        part = files.part("a.jsonl", start)
        assert part["fault"] is None
        sizes.append(len(part["rows"]))
        rows += part["rows"]
        if part["next"] is None:
            break
        start = part["next"]
    assert sizes == [3, 3, 1]
    assert [row[0] for row in rows] == [f"r{number}" for number in range(7)]
    assert [files.view("a.jsonl", row[9])["seconds"] for row in rows] == list(range(7))


def test_a_part_ends_after_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_files, "_MOST_BYTES", 10)
    written(tmp_path / "a.jsonl", unbroken(), breached())
    files = RunFiles(None, tmp_path)
    first = files.part("a.jsonl", 0)
    assert len(first["rows"]) == 1
    assert len(files.part("a.jsonl", first["next"])["rows"]) == 1


def test_a_line_that_is_no_record_ends_the_reading_with_its_place(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", unbroken())
    size = path.stat().st_size
    with path.open("ab") as file:
        file.write(b'\n{"id": 7}\n')
    part = RunFiles(None, tmp_path).part("a.jsonl", 0)
    assert len(part["rows"]) == 1
    assert part["next"] is None
    assert f"the line at byte {size + 1} is no record" in part["fault"]


def test_a_line_that_is_being_written_is_not_there_yet(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", unbroken())
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:50])
    part = RunFiles(None, tmp_path).part("a.jsonl", 0)
    assert (len(part["rows"]), part["next"], part["fault"]) == (1, None, None)


@pytest.mark.parametrize("start", [1, 17, 10**12])
def test_a_byte_at_which_no_record_begins_is_refused(tmp_path: Path, start: int) -> None:
    written(tmp_path / "a.jsonl", unbroken())
    for read in (RunFiles(None, tmp_path).part, RunFiles(None, tmp_path).view):
        with pytest.raises(RequestError, match=f"no record begins at byte {start}"):
            read("a.jsonl", start)


def test_there_is_no_record_at_the_end(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", unbroken())
    with pytest.raises(RequestError, match="the file ends"):
        RunFiles(None, tmp_path).view("a.jsonl", path.stat().st_size)
