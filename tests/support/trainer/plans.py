"""Gives a small plan, and the files that it names."""

from pathlib import Path
from typing import Any

import orjson
import yaml

from tests.support.trainer.recipes import FILE as RECIPE
from trainer.compare.plan import Plan, load_plan


def plan_in(folder: Path, **changes: Any) -> dict[str, Any]:
    """The fields of a plan whose recipe and questions lie in this folder."""
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
    questions = folder / "questions.jsonl"
    questions.write_bytes(lines_of([(f"{n} + 1?", f"{n + 1}") for n in range(8)]))
    fields: dict[str, Any] = {
        "recipe": str(recipe),
        "pair": {"base_url": "http://127.0.0.1:9/v1", "model": "motab/pair"},
        "questions": {"source": str(questions), "verify": "number"},
        "arms": {
            "sft": {"params": {"method": "teacher"}},
            "motab": {"params": {"method": "motab"}},
        },
        "serve": {"command": "serve {model} --port {port}", "ready": "/health"},
        "benchmarks": {"sums": {"source": str(questions), "samples": 2}},
        "output": str(folder / "out"),
    }
    return fields | changes


def lines_of(rows: list[tuple[str, str]]) -> bytes:
    """Questions with answers, one a line."""
    return b"".join(
        orjson.dumps(
            {"id": f"q{number}", "problem": question, "answer": answer},
            option=orjson.OPT_APPEND_NEWLINE,
        )
        for number, (question, answer) in enumerate(rows)
    )


def loaded_plan(folder: Path, **changes: Any) -> Plan:
    """The plan, written and read."""
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(plan_in(folder, **changes), sort_keys=False), encoding="utf-8")
    return load_plan(path)
