"""Tests the keys of units of work."""

from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import JsonValue

from synth_client.asking.servers import Servers
from synth_client.errors import RunMismatch
from synth_client.files.workspace import Manifest, open_workspace
from synth_client.questions.dataset import Dataset
from synth_client.questions.question import Synthesis, seed_of
from synth_client.runs.synthesise import Run
from tests.support.synth_client.client import QUESTION, SYNTHESIS, unit_of
from trajectory_records.record import Message


def test_units_have_a_key_for_what_is_asked_and_not_for_what_it_is_called() -> None:
    keys = {unit_of(SYNTHESIS, sample=sample).key for sample in range(3)}
    assert len(keys) == 3
    renamed = replace(QUESTION, id="other", answer=None)
    assert unit_of(SYNTHESIS, renamed).key == unit_of(SYNTHESIS).key
    assert unit_of(replace(SYNTHESIS, timeout_s=1.0)).key == unit_of(SYNTHESIS).key
    asked_otherwise = [
        replace(SYNTHESIS, model="other"),
        replace(SYNTHESIS, params={"base_threshold": 0.3}),
        replace(SYNTHESIS, temperature=0.7),
        replace(SYNTHESIS, top_p=0.7),
        replace(SYNTHESIS, max_tokens=7),
        replace(SYNTHESIS, seed=7),
        replace(SYNTHESIS, params={}, plain=True),
        replace(SYNTHESIS, params={}),
    ]
    others = {unit_of(synthesis).key for synthesis in asked_otherwise}
    assert len(others | {unit_of(SYNTHESIS).key}) == 9
    said = replace(QUESTION, messages=(Message(role="user", content="another"),))
    assert unit_of(SYNTHESIS, said).key != unit_of(SYNTHESIS).key


def test_an_answer_is_a_part_of_what_is_asked_only_as_a_reference() -> None:
    other = replace(QUESTION, answer="37")
    cases: list[tuple[dict[str, JsonValue], bool]] = [
        ({"corrections": 2}, False),
        ({"corrections": 2, "choose": "verified"}, False),
        ({"corrections": 2, "choose": "majority"}, True),
        ({"corrections": 1}, True),
    ]
    for params, are_alike in cases:
        synthesis = replace(SYNTHESIS, params=params)
        assert (unit_of(synthesis).key == unit_of(synthesis, other).key) == are_alike
        motab = synthesis.body(QUESTION, 0)["motab"]
        assert motab == params | ({} if are_alike else {"reference": "36"})


def test_no_two_samples_share_their_random_numbers() -> None:
    asked = [
        (seed, question, sample)
        for seed in range(3)
        for question in ("apples", "bags", "1", "11")
        for sample in range(4)
    ]
    bodies = [
        replace(SYNTHESIS, seed=seed).body(replace(QUESTION, id=question), sample)
        for seed, question, sample in asked
    ]
    seeds = {body["seed"] for body in bodies}
    assert len(seeds) == len(asked)
    assert all(isinstance(seed, int) and 0 <= seed < 2**31 for seed in seeds)


def test_a_seed_is_the_same_on_every_machine() -> None:
    assert seed_of(7, "apples", 2) == 1593903058
    assert "seed" not in SYNTHESIS.body(QUESTION, 2)


def test_another_id_asks_nothing_again() -> None:
    seeded, renamed = replace(SYNTHESIS, seed=7), replace(QUESTION, id="other")
    assert unit_of(seeded, renamed).key == unit_of(seeded).key
    assert seeded.body(renamed, 0) != seeded.body(QUESTION, 0)


def test_a_seeded_run_is_none_of_earlier_versions_which_drew_by_another_rule(
    tmp_path: Path,
) -> None:
    manifest = manifest_of(replace(SYNTHESIS, seed=7))
    before = {name: value for name, value in manifest.identity.items() if name != "seeds"}
    with open_workspace(
        tmp_path / "out.jsonl", manifest.model_copy(update={"identity": before}), fresh=False
    ) as workspace:
        workspace.journal.write_bytes(b"begun")
    with (
        pytest.raises(RunMismatch, match='seeds is not set there and "by row" here'),
        open_workspace(tmp_path / "out.jsonl", manifest, fresh=False),
    ):
        pass
    # Without a seed nothing has changed.
    assert "seeds" not in manifest_of(SYNTHESIS).identity


def manifest_of(synthesis: Synthesis) -> Manifest:
    return Run(
        dataset=Dataset("in", "in", lambda: iter(()), lambda: None, None),
        output=Path("out.jsonl"),
        servers=Servers(base_urls=("http://127.0.0.1:1/v1",)),
        synthesis=synthesis,
        verify="exact",
    ).manifest()


def test_fields_next_to_the_motab_object_belong_to_the_key_only_if_there_are_any() -> None:
    assert unit_of(replace(SYNTHESIS, fields={})).key == unit_of(SYNTHESIS).key
    chosen = replace(SYNTHESIS, fields={"top_k": 20})
    assert unit_of(chosen).key != unit_of(SYNTHESIS).key
    body = chosen.body(QUESTION, 0)
    assert body == SYNTHESIS.body(QUESTION, 0) | {"top_k": 20}


def test_the_order_of_the_parameters_makes_no_other_key() -> None:
    turned = {name: SYNTHESIS.params[name] for name in reversed(list(SYNTHESIS.params))}
    assert list(turned) != list(SYNTHESIS.params)
    assert unit_of(replace(SYNTHESIS, params=turned)).key == unit_of(SYNTHESIS).key
