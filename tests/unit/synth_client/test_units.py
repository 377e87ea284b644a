"""Tests the keys of units of work."""

from dataclasses import replace

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


def test_fields_next_to_the_motab_object_belong_to_the_key_only_if_there_are_any() -> None:
    assert unit_of(replace(SYNTHESIS, fields={})).key == unit_of(SYNTHESIS).key
    chosen = replace(SYNTHESIS, fields={"top_k": 20})
    assert unit_of(chosen).key != unit_of(SYNTHESIS).key
    body = chosen.body(QUESTION.messages, 0)
    assert body == SYNTHESIS.body(QUESTION.messages, 0) | {"top_k": 20}


def test_the_order_of_the_parameters_makes_no_other_key() -> None:
    turned = {name: SYNTHESIS.params[name] for name in reversed(list(SYNTHESIS.params))}
    assert list(turned) != list(SYNTHESIS.params)
    assert unit_of(replace(SYNTHESIS, params=turned)).key == unit_of(SYNTHESIS).key
