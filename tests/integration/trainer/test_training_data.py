"""Tests which data a training takes."""

from collections.abc import Callable
from pathlib import Path

import pytest

from synth_client.training_data.export import Export, export
from synth_client.training_data.filters import Filters
from tests.support.trainer.scripted import ScriptedTrainer
from trainer.errors import RecipeError
from trainer.training.dataset import prepare, settle
from trainer.training.recipe import ExportData, RecordsData


def test_an_export_is_taken_as_it_is(scripted: ScriptedTrainer) -> None:
    folder = scripted.folder / "export"
    job = Export(source=scripted.records, output=folder, format="llamafactory", filters=Filters(()))
    export(job)
    taken = prepare(ExportData(kind="export", path=folder), scripted.output)
    made = prepare(RecordsData(kind="records", path=scripted.records), scripted.output)
    assert settle(taken).folder == folder
    assert (taken.sha256, taken.num_examples) == (made.sha256, 2)


def break_info(folder: Path) -> None:
    (folder / "dataset_info.json").write_text('{"motab": {"columns": {}}}')


@pytest.mark.parametrize(
    ("spoil", "dataset", "sentence"),
    [
        (lambda folder: None, "other", "has no 'other', only motab"),
        (
            lambda folder: (folder / "train.jsonl").unlink(),
            "motab",
            "train.jsonl, which does not exist",
        ),
        (lambda folder: (folder / "train.jsonl").write_bytes(b"\n"), "motab", "is empty"),
        (lambda folder: (folder / "dataset_info.json").unlink(), "motab", "has no dataset_info"),
        (break_info, "motab", "names no file of 'motab'"),
    ],
)
def test_an_export_that_holds_no_data_is_told(
    spoil: Callable[[Path], object], dataset: str, sentence: str, scripted: ScriptedTrainer
) -> None:
    folder = scripted.folder / "export"
    export(
        Export(source=scripted.records, output=folder, format="llamafactory", filters=Filters(()))
    )
    spoil(folder)
    with pytest.raises(RecipeError, match=sentence):
        prepare(ExportData(kind="export", path=folder, dataset=dataset), scripted.output)


def test_a_filter_that_is_none_is_named(scripted: ScriptedTrainer) -> None:
    data = RecordsData(kind="records", path=scripted.records, filters=("good",))
    with pytest.raises(
        RecipeError, match=r"^data\.filters: good: no such filter; known filters are corr"
    ):
        prepare(data, scripted.output)
