"""Tests the sampling values of both authors, and the variables of chat templates."""

import math
from typing import Any

import pytest

from proxy.backends.base import Sampling
from proxy.core.params import ParameterError, TeacherSampling
from proxy.options import (
    OptionsError,
    StudentSampling,
    merge_layers,
    parse_options,
    parse_sampling,
    split_sampling,
    template_kwargs,
)

AT_THE_BOUNDS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 2},
    {"top_p": 0.001},
    {"top_p": 1},
    {"top_k": -1},
    {"top_k": 2**30},
    {"min_p": 0},
    {"min_p": 1},
    {"presence_penalty": -2},
    {"frequency_penalty": 2},
    {"repetition_penalty": 0.001},
    {"repetition_penalty": 2},
]
OUT_OF_BOUNDS: list[tuple[str, Any, str]] = [
    ("temperature", -0.1, "must be "),
    ("temperature", 2.1, "must be "),
    ("top_p", 0, "must be above 0 and at most 1, not 0.0"),
    ("top_p", 1.1, "must be above 0 and at most 1, not 1.1"),
    ("top_k", -2, "must be in [-1, 1073741824], not -2"),
    ("top_k", 2**31, "must be in [-1, 1073741824], not 2147483648"),
    ("top_k", 1.5, ": input should be a valid integer"),
    ("top_k", True, ": input should be a valid integer"),
    ("min_p", -0.1, "must be in [0, 1], not -0.1"),
    ("min_p", 1.1, "must be in [0, 1], not 1.1"),
    ("presence_penalty", 2.1, "must be in [-2, 2], not 2.1"),
    ("frequency_penalty", -2.1, "must be in [-2, 2], not -2.1"),
    ("repetition_penalty", 0, "must be above 0 and at most 2, not 0.0"),
    ("repetition_penalty", 2.1, "must be above 0 and at most 2, not 2.1"),
    ("repetition_penalty", "1", ": input should be a valid number"),
    ("min_p", None, ": input should be a valid number"),
]


@pytest.mark.parametrize("asked", AT_THE_BOUNDS, ids=str)
def test_both_authors_take_a_value_at_its_bound(asked: dict[str, Any]) -> None:
    assert parse_sampling(asked) == StudentSampling(**asked)
    options = parse_options({"teacher": asked})
    taken = Sampling(options.teacher_temperature, **_values(options.teacher))
    assert taken == Sampling(**{"temperature": 0.6, **asked})


def _values(teacher: TeacherSampling) -> dict[str, Any]:
    return {name: getattr(teacher, name) for name in TeacherSampling.__dataclass_fields__}


@pytest.mark.parametrize(("name", "value", "words"), OUT_OF_BOUNDS)
def test_a_value_out_of_bounds_is_refused_by_its_path(name: str, value: Any, words: str) -> None:
    with pytest.raises(OptionsError) as student:
        parse_sampling({name: value})
    assert student.value.field == name
    assert str(student.value).startswith(name)
    assert words in str(student.value)
    with pytest.raises(OptionsError) as teacher:
        parse_options({"teacher": {name: value}})
    assert teacher.value.field == f"teacher.{name}"
    assert str(teacher.value).startswith(f"teacher.{name}")
    assert words in str(teacher.value)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_no_finite_number_is_refused(value: float) -> None:
    with pytest.raises(ParameterError, match="min_p must be a finite number"):
        Sampling(0.5, min_p=value)


@pytest.mark.parametrize("teacher", [3, None, [], "warm"], ids=str)
def test_a_teacher_that_is_no_object_is_refused(teacher: Any) -> None:
    with pytest.raises(OptionsError, match="teacher: input should be an object"):
        parse_options({"teacher": teacher})


def test_an_unknown_value_of_the_teacher_is_refused_by_its_path() -> None:
    with pytest.raises(
        OptionsError, match=r"^teacher\.top_q is not a known field; did you mean 'top_[kp]'\?$"
    ):
        parse_options({"teacher": {"top_q": 1}})


def test_later_layers_replace_single_values_of_the_teacher() -> None:
    options = parse_options(
        {"teacher": {"temperature": 0.5, "top_p": 0.9}},
        {"teacher": {"top_k": 3}},
        {"teacher_temperature": 0.2},
    )
    assert options.teacher_temperature == 0.2
    assert options.teacher == TeacherSampling(top_p=0.9, top_k=3)


@pytest.mark.parametrize("short_first", [True, False])
def test_the_short_form_and_the_long_form_replace_each_other(short_first: bool) -> None:
    layers: list[dict[str, Any]] = [
        {"teacher_temperature": 0.3},
        {"teacher": {"temperature": 0.9}},
    ]
    found = parse_options(*layers if short_first else reversed(layers))
    assert found.teacher_temperature == (0.9 if short_first else 0.3)


def test_a_layer_that_gives_both_forms_must_mean_the_same() -> None:
    same = {"teacher_temperature": 0.3, "teacher": {"temperature": 0.3}}
    assert parse_options(same).teacher_temperature == 0.3
    with pytest.raises(OptionsError, match=r"is 0\.4 and teacher\.temperature 0\.3: they mean"):
        parse_options({**same, "teacher_temperature": 0.4})
    with pytest.raises(OptionsError):
        parse_options({**same, "teacher_temperature": math.nan})


def test_layers_stay_as_they_were() -> None:
    layer = {"teacher": {"top_p": 0.5}, "teacher_temperature": 0.1}
    merge_layers(layer, {"teacher": {"top_p": 0.6}})
    assert layer == {"teacher": {"top_p": 0.5}, "teacher_temperature": 0.1}


@pytest.mark.parametrize("name", ["temperature", "top_p", "top_k", "repetition_penalty"])
def test_the_motab_object_names_the_place_of_the_student_s_values(name: str) -> None:
    with pytest.raises(OptionsError, match=f"^{name} is set at the request's top level"):
        parse_options({name: 1})


def test_params_hold_the_student_s_values_and_the_options() -> None:
    params = {"temperature": 0.6, "gamma": 0.9, "teacher": {"top_p": 0.9}, "top_k": 20}
    sampling, options = split_sampling(params)
    assert sampling == {"temperature": 0.6, "top_k": 20}
    assert options == {"gamma": 0.9, "teacher": {"top_p": 0.9}}


@pytest.mark.parametrize("name", ["presence_penalty", "frequency_penalty", "repetition_penalty"])
def test_text_with_penalties_can_be_repeated_only_from_its_start(name: str) -> None:
    penalty: dict[str, Any] = {name: 1.5}
    assert Sampling(0.7, **penalty).counts_from_start
    assert not Sampling(0.7, top_k=3, min_p=0.1).counts_from_start


def test_a_reasoning_effort_switches_thinking_as_well() -> None:
    assert template_kwargs({}, None) == {}
    assert template_kwargs({}, "low") == {"enable_thinking": True, "reasoning_effort": "low"}
    assert template_kwargs({}, "none") == {"enable_thinking": False, "reasoning_effort": "none"}
    own = {"enable_thinking": False, "reasoning_effort": "low"}
    assert template_kwargs(own, "low") == own


def test_two_reasoning_efforts_must_be_the_same() -> None:
    with pytest.raises(OptionsError, match="they mean the same") as caught:
        template_kwargs({"reasoning_effort": "high"}, "low")
    assert caught.value.field == "reasoning_effort"


@pytest.mark.parametrize("name", ["messages", "add_generation_prompt", "tokenize", "tools"])
def test_a_template_s_variable_that_is_motab_s_own_is_refused_by_name(name: str) -> None:
    with pytest.raises(OptionsError, match="motab itself decides it") as caught:
        template_kwargs({"enable_thinking": False, name: 1}, None)
    assert caught.value.field == f"chat_template_kwargs.{name}"
