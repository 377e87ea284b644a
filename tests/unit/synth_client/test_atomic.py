from pathlib import Path

import pytest

from synth_client.errors import OutputError
from synth_client.files.atomic import AtomicFile, atomic_folder, write_whole
from tests.support.disk import watch_disk


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The syncs and the replacements, in order."""
    return watch_disk(monkeypatch)


def test_a_file_is_on_disk_before_it_takes_its_place(
    tmp_path: Path, steps: list[tuple[str, str]]
) -> None:
    write_whole(tmp_path / "run.json", b"{}")
    assert steps == [("sync", "run.json.partial"), ("place", "run.json"), ("sync", tmp_path.name)]
    assert (tmp_path / "run.json").read_bytes() == b"{}"


def test_a_folder_is_on_disk_before_it_takes_its_place(
    tmp_path: Path, steps: list[tuple[str, str]]
) -> None:
    with atomic_folder(tmp_path / "out", "marker", overwrite=False) as folder:
        (folder / "marker").write_text("whole")
    assert steps == [
        ("sync", "marker"),
        ("sync", ".out.partial"),
        ("place", "out"),
        ("sync", tmp_path.name),
    ]


def test_a_file_that_is_not_published_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(b"old")
    with AtomicFile(path) as whole:
        whole.file.write(b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    path = tmp_path / "none" / "run.json"
    with pytest.raises(OutputError, match=r"none/run\.json: No such file or directory"):
        write_whole(path, b"{}")
