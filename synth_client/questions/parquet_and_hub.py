"""Reads rows of Parquet files and Hugging Face datasets, with the libraries of an extra."""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from synth_client.errors import InputError

_BATCH_ROWS: Final = 256


@dataclass(frozen=True, slots=True)
class Table:
    """`rows` starts over each time. `num_rows` is None if it is unknown."""

    name: str
    columns: Sequence[str]
    num_rows: int | None
    rows: Callable[[], Iterator[Mapping[str, Any]]]


def read_parquet(path: Path) -> Table:
    """Open a Parquet file. Raises `InputError` if it is not readable as Parquet."""
    parquet = library("pyarrow.parquet", "reading Parquet")
    arrow = library("pyarrow", "reading Parquet")
    try:
        with parquet.ParquetFile(path) as file:
            columns, num_rows = file.schema_arrow.names, file.metadata.num_rows
    except (arrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: not readable as Parquet: {_reason(error)}") from error

    def rows() -> Iterator[Mapping[str, Any]]:
        number = 0
        try:
            # Buffering ahead would hold whole row groups, which may be the whole file.
            with parquet.ParquetFile(path, memory_map=True, pre_buffer=False) as file:
                for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                    for row in batch.to_pylist():
                        yield row
                        number += 1
        except (arrow.ArrowException, OSError) as error:
            raise InputError(
                f"{path}: not readable after row {number}: {_reason(error)}"
            ) from error

    return Table(path.name, columns, num_rows, rows)


def read_hub(source: str, split: str, subset: str | None) -> Table:
    """Open a dataset that `datasets` knows: a folder that it saved, a folder of data files, or a
    dataset on the hub, which is streamed. Raises `InputError` if it cannot be opened.
    """
    datasets = library("datasets", "reading datasets")
    path = Path(source)
    try:
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            saved = datasets.load_from_disk(str(path))
            found = _split(source, saved, split) if isinstance(saved, dict) else saved
            return _table(source, found, found.num_rows)
        found = datasets.load_dataset(source, subset, split=split, streaming=True)
    except InputError:
        raise
    except Exception as error:  # the library's errors share no base class
        what = "not a readable dataset" if path.exists() else "no such file or dataset"
        raise InputError(f"{source}: {what}: {_reason(error)}") from error
    info = (found.info.splits or {}).get(split)
    return _table(source, found, getattr(info, "num_examples", None) or None)


def _split(source: str, splits: Mapping[str, Any], wanted: str) -> Any:  # noqa: ANN401
    if wanted not in splits:
        raise InputError(f"{source}: no split {wanted!r}; its splits: {', '.join(splits)}")
    return splits[wanted]


def _table(source: str, found: Any, num_rows: int | None) -> Table:  # noqa: ANN401
    def rows() -> Iterator[Mapping[str, Any]]:
        number = 0
        try:
            for row in found:
                yield row
                number += 1
        except Exception as error:
            raise InputError(f"{source}: ends after row {number}: {_reason(error)}") from error

    name = Path(source).name if Path(source).exists() else source
    return Table(name, found.column_names or (), num_rows, rows)


def library(module: str, what: str) -> Any:  # noqa: ANN401
    """Import a library of the extra `data`. Raises `InputError` if it is not installed."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise InputError(f"{what} needs {error.name}: pip install 'motab[data]'") from error


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
