"""Tests that a misspelt name is answered with the name that was meant, wherever users write one."""

import sys
import time
from pathlib import Path
from typing import Any

import pytest

from motab.cli import main
from proxy.near_names import did_you_mean, fields_at, near_name
from proxy.options import OptionsError, parse_options, parse_sampling
from synth_client.errors import InputError
from synth_client.judging.rules import check_rule
from synth_client.questions.dataset import open_dataset
from synth_client.training_data.filters import parse_filter
from tests.support.proxy.configs import changed, complaint
from trainer.errors import RecipeError
from trainer.training.recipe import Recipe, load_recipe


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("serve", {}, "serve is not a known field; did you mean 'server'?"),
        ("server prot", 1, "server.prot is not a known field; did you mean 'port'?"),
        ("server max-n", 1, "server.max-n is not a known field; did you mean 'max_n'?"),
        (
            "server records",
            {"fil": "x"},
            "server.records.fil is not a known field; did you mean 'file'? (and 1 more)",
        ),
        (
            "upstreams small",
            {"kind": "llamacpp", "base_ur": "http://h", "model": "m"},
            "upstreams.small.base_ur is not a known field; did you mean 'base_url'? (and 1 more)",
        ),
        (
            "upstreams small retries",
            {"attempt": 2},
            "upstreams.small.retries.attempt is not a known field; did you mean 'attempts'?",
        ),
        (
            "upstreams small kind",
            "llama.cpp",
            "not 'llama.cpp'; did you mean 'llamacpp'?",
        ),
        ("upstreams small kind", "VLLM", "not 'VLLM'; did you mean 'vllm'?"),
        (
            "upstreams small",
            {"knid": "vllm", "base_url": "http://h", "model": "m"},
            "upstreams.small.kind is missing; did you mean 'kind' by 'knid'?",
        ),
        (
            "upstreams small reasoning",
            "thnik",
            "input should be 'auto', 'none', 'think' or 'harmony'; did you mean 'think'?",
        ),
        (
            "models motab/pair",
            {"studnt": "small", "teacher": "large"},
            "models.motab/pair.studnt is not a known field; did you mean 'student'? (and 1 more)",
        ),
        (
            "models motab/pair student",
            "smal",
            "no upstream 'smal'; there are small, large; did you mean 'small'?",
        ),
        (
            "models motab/pair params",
            {"base_treshold": 0.1},
            "params: base_treshold is not a known field; did you mean 'base_threshold'?",
        ),
        (
            "models motab/pair params",
            {"teacher": {"temperatur": 0.1}},
            "teacher.temperatur is not a known field; did you mean 'temperature'?",
        ),
    ],
)
def test_a_misspelt_key_of_a_configuration_is_recognised(
    path: str, value: Any, sentence: str, tmp_path: Path
) -> None:
    assert complaint(changed(path, value), tmp_path).endswith(sentence)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"base_treshold": 0.1}, "base_treshold is not a known field; did you mean"),
        ({"method": "mtoab"}, "did you mean 'motab'?"),
        ({"boundary": "adaptve"}, "did you mean 'adaptive'?"),
        ({"teacher": {"topp": 0.1}}, "teacher.topp is not a known field; did you mean 'top_p'?"),
    ],
)
def test_a_misspelt_option_of_a_request_is_recognised(
    options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(OptionsError) as caught:
        parse_options(options)
    assert sentence in str(caught.value)
    with pytest.raises(OptionsError, match="did you mean 'top_p'"):
        parse_sampling({"topp": 1})


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("corect", "correct"),
        ("token<=8000", "tokens<=8000"),
        ("finish=lenght", "finish=length"),
        ("uniqe=shortst", "unique=shortest"),
        ("whole_answers", "whole-answers"),
    ],
)
def test_a_misspelt_filter_is_recognised(text: str, meant: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_filter(text)
    assert str(caught.value).endswith(f"; did you mean '{meant}'?")


def test_a_filter_with_a_wrong_number_is_not_corrected() -> None:
    with pytest.raises(InputError) as caught:
        parse_filter("tokens<=many")
    assert "did you mean" not in str(caught.value)


def test_a_misspelt_rule_is_recognised() -> None:
    with pytest.raises(InputError, match="did you mean 'number'"):
        check_rule("numbr")


def test_a_misspelt_suffix_of_a_question_file_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "questions.jsnl").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match=r"did you mean '\.jsonl'"):
        open_dataset(str(tmp_path / "questions.jsnl"))


def test_a_misspelt_kind_of_a_recipe_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("model: m\ndata: {kind: recrods, path: x}\noutput: y\n", encoding="utf-8")
    with pytest.raises(RecipeError, match="did you mean 'records'"):
        load_recipe(path)
    assert "learn_history" in fields_at(Recipe, ("loss", "sft"))


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (("export", "x", "--format", "llamafactry", "--output", "y"), "llamafactory"),
        (("export", "x", "--format", "hf", "--mask", "corection", "--output", "y"), "correction"),
        (("serve", "--config", "x", "--log-format", "jsno"), "json"),
        (("synth", "--concurency"), "--concurrency"),
        (("sytnh",), "synth"),
    ],
)
def test_a_misspelt_word_of_a_command_is_recognised(
    arguments: tuple[str, ...],
    meant: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setattr(sys, "argv", ["motab", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    said = " ".join(capsys.readouterr().err.split()).lower()
    question = said[max(said.find("did you mean"), said.find("possible options")) :]
    assert meant in question


def test_nothing_is_suggested_where_nothing_is_alike() -> None:
    assert did_you_mean("surprise", ("host", "port")) == ""
    assert near_name("Port", ("host", "port")) == "port"


def test_a_name_of_megabytes_is_not_compared() -> None:
    started = time.perf_counter()
    assert did_you_mean("base_threshold" * 100_000, ("base_threshold",)) == ""
    assert time.perf_counter() - started < 1
