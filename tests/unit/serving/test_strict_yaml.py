"""Tests that a configuration says everything once."""

import time
from pathlib import Path

import pytest
import yaml

from proxy.config import load_config
from proxy.errors import ConfigError
from proxy.yaml_file import load_yaml

UPSTREAM = "  s: {kind: vllm, base_url: 'http://127.0.0.1:1', model: a}\n"
MODEL = "  m: {student: s, teacher: s, params: {%s}}\n"


def complaint(tmp_path: Path, upstreams: str, models: str) -> str:
    path = tmp_path / "config.yaml"
    path.write_text(f"upstreams:\n{upstreams}models:\n{models}", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    return str(caught.value).removeprefix(f"{path}: ")


@pytest.mark.parametrize(
    ("upstreams", "models", "where"),
    [
        (UPSTREAM * 2, MODEL % "", "upstreams.s stands twice, in lines 2 and 3"),
        (UPSTREAM, MODEL % "gamma: 1.0, gamma: 0.9", "models.m.params.gamma stands twice"),
        (UPSTREAM, MODEL % "gamma: 1.0, 'gamma': 0.9", "models.m.params.gamma stands twice"),
        (UPSTREAM, MODEL % "teacher: {top_k: 1, top_k: 1}", "params.teacher.top_k stands twice"),
        (UPSTREAM, (MODEL % "") * 2, "models.m stands twice, in lines 4 and 5"),
        (UPSTREAM, (MODEL % "") + "models: {}\n", "models stands twice, in lines 3 and 5"),
        ("  a: [{b: 1, b: 2}]\n", MODEL % "", "upstreams.a[0].b stands twice, in line 2: keep"),
        ("  a: &a [*a]\n", MODEL % "", "upstreams.a[0] contains itself"),
    ],
)
def test_a_key_that_stands_twice_is_refused_with_its_path_and_lines(
    tmp_path: Path, upstreams: str, models: str, where: str
) -> None:
    assert where in complaint(tmp_path, upstreams, models)


def test_a_merged_key_may_be_replaced_and_an_alias_repeated() -> None:
    text = "base: &base {a: 1, b: 2}\none: {<<: *base, a: 3}\ntwo: [*base, *base]\n"
    base = {"a": 1, "b": 2}
    assert load_yaml(text) == {"base": base, "one": {"a": 3, "b": 2}, "two": [base, base]}
    assert load_yaml("") is None
    assert load_yaml("1: a\n'1': b\n") == {1: "a", "1": "b"}


def test_events_are_no_default_of_a_model(tmp_path: Path) -> None:
    found = complaint(tmp_path, UPSTREAM, MODEL % "events: true")
    assert found.startswith("models.m.params: events: true belongs to a request that streams")


def test_a_model_may_say_that_it_has_no_events_and_how_both_models_sample(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    params = "events: false, top_k: 20, temperature: 0.6, teacher: {top_p: 0.9}"
    path.write_text(f"upstreams:\n{UPSTREAM}models:\n{MODEL % params}", encoding="utf-8")
    model = load_config(path).models["m"]
    assert model.sampling == {"top_k": 20, "temperature": 0.6}
    assert model.options == {"events": False, "teacher": {"top_p": 0.9}}


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        ("top_k: many", "models.m.params: top_k: input should be a valid integer"),
        ("top_p: 0", "models.m.params: top_p must be above 0 and at most 1, not 0.0"),
        ("teacher: {min_p: 2}", "models.m.params: teacher.min_p must be in [0, 1], not 2.0"),
        (
            "teacher: {temperature: 0.1}, teacher_temperature: 0.2",
            "models.m.params: teacher_temperature is 0.2 and teacher.temperature 0.1: they mean ",
        ),
    ],
)
def test_sampling_that_cannot_be_used_is_refused(
    tmp_path: Path, params: str, sentence: str
) -> None:
    assert complaint(tmp_path, UPSTREAM, MODEL % params).startswith(sentence)


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        (
            "chat_template_kwargs: {messages: []}",
            "upstreams.s: chat_template_kwargs.messages cannot be set: motab itself decides it",
        ),
        (
            "reasoning_effort: low, chat_template_kwargs: {reasoning_effort: high}",
            "upstreams.s: reasoning_effort is 'low' and chat_template_kwargs.reasoning_effort 'hi",
        ),
        ("reasoning_effort: very", "upstreams.s.reasoning_effort: input should be 'none', 'minim"),
    ],
)
def test_variables_that_cannot_be_set_are_refused(tmp_path: Path, keys: str, sentence: str) -> None:
    upstream = UPSTREAM.replace("model: a", f"model: a, {keys}")
    assert complaint(tmp_path, upstream, MODEL % "").startswith(sentence)


ALIASES = "a0: &a0 [x, x]\n" + "".join(
    f"a{i}: &a{i} [{f'*a{i - 1}, ' * 9}]\n" for i in range(1, 12)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{f'*a{i - 1}, ' * 9}], b: 1}}\n" for i in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "about"),
    [
        (ALIASES, r"a\d+\S* has more than 100000 values, aliases resolved"),
        (MERGES, r"a\d+\S* has more than 100000 values, aliases resolved"),
        ("a: &a [&b [*a, *b]]\n", r"a\[0\]\[0\] contains itself"),
        ("a: &a {b: &b {c: *a}}\n", r"a.b.c contains itself"),
        ("a: " + "[" * 100_000, "nested too deeply"),
        ("a: " + "{b: " * 100_000, "nested too deeply"),
        ("- " * 100_000, "nested too deeply"),
        ("a: " + "[" * 900 + "]" * 900, "nested too deeply"),
        ("a: " + "x" * 1_000_000, "it has 1000003 characters, and at most 1000000 are read"),
        ("a: " + "1" * 5000, "a value does not fit its type"),
        ("a: 2026-99-99", "a value does not fit its type"),
        ("a: !!int ''", "a value does not fit its type"),
        ("a: !!bool x", "a value does not fit its type"),
        ("a: !!timestamp x", "a value does not fit its type"),
        ("? 2026-99-99\n: 1", "a value does not fit its type"),
    ],
)
def test_a_hostile_document_is_refused_soon(tmp_path: Path, text: str, about: str) -> None:
    began = time.process_time()
    with pytest.raises(yaml.YAMLError, match=about):
        load_yaml(text)
    assert time.process_time() - began < 5
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=about):
        load_config(path)
