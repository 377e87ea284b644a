"""Tests `motab train --dry-run`: it says exactly what a training runs."""

import pytest

from synth_client.errors import InputError
from tests.support.trainer.scripted import ScriptedTrainer
from trainer.errors import RecipeError
from trainer.training.preview import preview

DATA = {"kind": "records", "filters": ["correct"]}


@pytest.mark.parametrize("loss", [{"kind": "sft"}, {"kind": "dft"}, {"kind": "on_policy"}])
def test_a_dry_run_says_what_a_training_then_runs(
    loss: dict[str, object], scripted: ScriptedTrainer
) -> None:
    changes = scripted.on_policy() if loss["kind"] == "on_policy" else {"loss": loss}
    said = preview(scripted.recipe(**changes), scripted.python)
    assert not scripted.output.exists()
    if loss["kind"] == "on_policy":
        scripted.distils("mkdir model; echo '{}' > model/trainer_log.jsonl")
    scripted.train(**changes)
    (session,) = scripted.run["sessions"]
    assert " ".join(session["command"]) in said
    name = "trl.yaml" if loss["kind"] == "on_policy" else "llamafactory.yaml"
    for file in (name, "recipe.yaml"):
        assert (scripted.output / file).read_text(encoding="utf-8") in said
    assert "data: 2 examples from" in said


def test_a_dry_run_counts_what_the_filters_drop(scripted: ScriptedTrainer) -> None:
    data = DATA | {"path": str(scripted.records)}
    said = preview(scripted.recipe(data=data), scripted.python).splitlines()
    assert said[0].startswith("data: 1 examples from")
    assert said[1] == "  1 dropped by correct"


def test_a_dry_run_finds_what_a_training_would(scripted: ScriptedTrainer) -> None:
    data = DATA | {"path": str(scripted.records), "filters": ["tokens>=100"]}
    with pytest.raises(InputError, match="tokens>=100"):
        preview(scripted.recipe(data=data), scripted.python)
    with pytest.raises(RecipeError, match="positions of the model"):
        preview(scripted.recipe(training={"max_tokens": 9999}), scripted.python)
    assert not scripted.output.exists()
