"""Gives the smallest recipe."""

from typing import Any

FILE: dict[str, Any] = {
    "model": "org/student",
    "data": {"kind": "records", "path": "records.jsonl"},
    "output": "out",
}
