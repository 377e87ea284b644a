"""`motab reproduce --retrain`: both models of a pair, trained from random weights."""

from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from rich.console import Console

from trainer.reproduce import tiny_pair
from trainer.reproduce.sets import Sets
from trainer.reproduce.tiny_pair import STUDENT, TEACHER, Round, Schooling, make_pair

SCHOOLING = {"sets": Schooling(1, (Round(3, 1e-3), Round(2, 1e-3, redone=0.5)))}


WEIGHTS = "model.safetensors"


def test_a_pair_is_trained_round_by_round_and_not_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny_pair, "TEACHER", replace(TEACHER, by_task=SCHOOLING))
    monkeypatch.setattr(tiny_pair, "STUDENT", replace(STUDENT, by_task=SCHOOLING))
    pair = make_pair(Sets(), tmp_path, Console(quiet=True))
    for name, model in (("teacher", pair.teacher), ("student", pair.student)):
        assert model == tmp_path / name / "round-2" / "model"
        config = orjson.loads((model / "config.json").read_bytes())
        blank = tmp_path / name / "blank"
        made = orjson.loads((blank / "config.json").read_bytes())
        assert {key: config[key] for key in made} == made
        for file in ("tokenizer.json", "tokenizer_config.json"):
            assert (model / file).read_bytes() == (blank / file).read_bytes()
        settings = orjson.loads((tmp_path / name / "round-2" / "settings.json").read_bytes())
        first = tmp_path / name / "round-1" / "model"
        assert settings["begin"] == str(first)
        assert (first / WEIGHTS).read_bytes() != (model / WEIGHTS).read_bytes()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob(WEIGHTS)}
    assert make_pair(Sets(), tmp_path, Console(quiet=True)) == pair
    assert {path: path.stat().st_mtime_ns for path in before} == before
