"""Prepares the training data: a folder, a dataset name, and the hash of the data file."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Final

import orjson

from synth_client.errors import InputError
from synth_client.files.atomic import output_errors, replace_folder
from synth_client.training_data.export import DATASET_INFO, DATASET_NAME
from synth_client.training_data.filters import Filters
from trainer.errors import RecipeError
from trainer.training.loss_spans import export_llamafactory, export_with_spans
from trainer.training.recipe import DataLoss, ExportData, RecordsData

_NEXT: Final = "data.next"
_FOLDER: Final = "data"


@dataclass(frozen=True, slots=True)
class Dataset:
    """The training data: folder (absolute), dataset name, and the hash and length of its file."""

    folder: Path
    name: str
    source: Path
    sha256: str
    num_examples: int
    dropped: Mapping[str, int] = field(default_factory=dict)
    """The number of dropped records, by the filter that dropped them."""


def prepare(data: RecordsData | ExportData, output: Path, loss: DataLoss | None = None) -> Dataset:
    """Prepare the data; records are exported to a temporary folder, which `settle` puts in place.

    Raises `InputError` or `RecipeError` if there is nothing to learn from.
    """
    if isinstance(data, ExportData):
        return _known(data.path.resolve(), data.dataset, data.path)
    try:
        filters = Filters(data.filters)
    except InputError as error:
        raise RecipeError(f"data.filters: {str(error).removeprefix('--filter ')}") from error
    folder = output.resolve() / _NEXT
    if loss is not None:
        kept = export_with_spans(data.path, folder, filters, loss)
    else:
        kept = export_llamafactory(data.path, folder, filters)
    return _known(folder, DATASET_NAME, data.path, kept.dropped)


def settle(dataset: Dataset) -> Dataset:
    """Replace an earlier export with the temporary one."""
    if dataset.folder.name != _NEXT:
        return dataset
    folder = dataset.folder.with_name(_FOLDER)
    with output_errors(folder):
        replace_folder(dataset.folder, folder)
    return replace(dataset, folder=folder)


def discard(dataset: Dataset) -> None:
    """Remove a temporary export."""
    if dataset.folder.name == _NEXT:
        shutil.rmtree(dataset.folder)


def _known(
    folder: Path, name: str, source: Path, dropped: Mapping[str, int] | None = None
) -> Dataset:
    info = folder / DATASET_INFO
    if not info.is_file():
        raise RecipeError(
            f"data.path: {source} has no {DATASET_INFO};"
            " make such a folder with motab export --format llamafactory"
        )
    with output_errors(info):
        content = info.read_bytes()
    try:
        datasets = orjson.loads(content)
        entry = datasets.get(name)
        file = None if entry is None else folder / entry["file_name"]
    except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
        raise RecipeError(f"data.path: {info} names no file of '{name}'") from error
    if file is None:
        raise RecipeError(f"data.dataset: {info} has no '{name}', only {', '.join(datasets)}")
    if not file.is_file():
        raise RecipeError(f"data.path: {info} names {file.name}, which does not exist")
    digest, num_lines = sha256(), 0
    with output_errors(file), file.open("rb") as lines:
        for line in lines:
            digest.update(line)
            num_lines += bool(line.strip())
    if not num_lines:
        raise RecipeError(f"data.path: {file} is empty")
    return Dataset(folder, name, source, digest.hexdigest(), num_lines, dict(dropped or {}))
