"""Writes rows in every format, and reads them as questions."""

import csv
import json
from pathlib import Path
from typing import Any

import datasets
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from synth_client.questions.dataset import open_dataset
from synth_client.questions.question import BadRow, Question
from trajectory_records.record import Message

USER = {"role": "user", "content": "What is 3 + 4?"}
ASSISTANT = {"role": "assistant", "content": "It is \\boxed{7}."}
ASKED = (Message(**USER),)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """The rows in the format of the suffix."""
    match path.suffix:
        case ".jsonl":
            path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
        case ".json":
            path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
        case ".csv" | ".tsv":
            with path.open("w", encoding="utf-8", newline="") as file:
                delimiter = "\t" if path.suffix == ".tsv" else ","
                writer = csv.DictWriter(file, rows[0], delimiter=delimiter)
                writer.writeheader()
                writer.writerows(rows)
        case ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        case "":
            datasets.Dataset.from_list(rows).save_to_disk(str(path))
    return path


def rows_of(path: Path, **how: Any) -> list[Question | BadRow]:
    return list(open_dataset(str(path), **how).rows())


def only(tmp_path: Path, row: Any) -> Question | BadRow:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"question": "first"}\n' + orjson.dumps(row))
    _, found = rows_of(path)
    return found
