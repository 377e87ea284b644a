import dataclasses
import math
from typing import Any

import pytest

from proxy.complaints import Complaint
from proxy.core.params import ParameterError, Params
from proxy.options import Options, OptionsError, parse_options

PAPER = {
    "method": "motab",
    "base_threshold": 0.2,
    "entropy_scale": 1.0,
    "entropy_top_k": 20,
    "delimiter": ".\n\n",
    "max_step_tokens": 8192,
    "max_total_tokens": 32768,
    "revise": "However,",
    "boundary": "adaptive",
    "backtrack": "td_error",
    "stitch": "flawed",
    "teacher_temperature": 0.6,
    "trace": "summary",
    "events": False,
}


def refusal_of(*layers: dict[str, Any]) -> OptionsError:
    with pytest.raises(OptionsError) as caught:
        parse_options(*layers)
    return caught.value


def test_the_defaults_are_the_papers() -> None:
    assert PAPER.items() <= dataclasses.asdict(parse_options()).items()


def test_options_that_come_again_are_not_parsed_again_unless_they_are_long() -> None:
    assert parse_options({"gamma": 0.5}) is parse_options({}, {"gamma": 0.5})
    long = {"delimiter": "\N{PARTY POPPER}" * 1000}
    assert parse_options(long) == parse_options(long)
    assert parse_options(long) is not parse_options(long)


def test_a_later_layer_beats_an_earlier_one_field_by_field() -> None:
    options = parse_options(
        {"base_threshold": 0.3, "entropy_scale": 2.0, "revise": "Hm,"},
        {"base_threshold": 0.4, "entropy_scale": 0.5},
        {"base_threshold": 0.1},
    )
    assert (options.base_threshold, options.entropy_scale) == (0.1, 0.5)
    assert options.revise == "Hm,"
    assert options.max_step_tokens == 8192


def test_the_layers_stay_as_they_were() -> None:
    layers = ({"base_threshold": 0.3}, {"base_threshold": 0.4})
    parse_options(*layers)
    assert layers == ({"base_threshold": 0.3}, {"base_threshold": 0.4})


def test_a_bad_value_in_an_earlier_layer_does_no_harm_where_it_is_beaten() -> None:
    assert parse_options({"base_threshold": 7}, {"base_threshold": 0.4}).base_threshold == 0.4
    assert refusal_of({"base_threshold": 0.4}, {"base_threshold": 7}).field == "base_threshold"


@pytest.mark.parametrize(
    "asked",
    [
        {"base_threshold": 0.0},
        {"base_threshold": 1.0},
        {"base_threshold": 1},  # JSON has one kind of number
        {"entropy_scale": 0},
        {"entropy_scale": 100.0},
        {"entropy_top_k": 2},
        {"delimiter": "\n"},
        {"max_step_tokens": 1},
        {"max_total_tokens": 1},
        {"revise": "x"},
        {"teacher_temperature": 0},
        {"events": True},
        {"rounds": 2**31 - 1},
        {"correction_steps": 2},
    ]
    + [{"method": name} for name in ("motab", "teacher", "student")]
    + [{"boundary": name} for name in ("adaptive", "static")]
    + [{"backtrack": name} for name in ("td_error", "none")]
    + [{"stitch": name} for name in ("flawed", "clean")]
    + [{"trace": name} for name in ("none", "summary", "full")],
    ids=str,
)
def test_a_value_at_its_bound_is_taken(asked: dict[str, Any]) -> None:
    options = dataclasses.asdict(parse_options(asked))
    assert options == dataclasses.asdict(parse_options()) | asked


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("base_threshold", -0.001, "base_threshold must be in [0, 1], not -0.001"),
        ("base_threshold", 1.001, "base_threshold must be in [0, 1], not 1.001"),
        ("entropy_scale", -0.001, "entropy_scale must be at least 0, not -0.001"),
        ("entropy_top_k", 1, "entropy_top_k must be at least 2, not 1"),
        ("delimiter", "", "delimiter must be some text, not ''"),
        ("max_step_tokens", 0, "max_step_tokens must be at least 1, not 0"),
        ("max_total_tokens", 0, "max_total_tokens must be at least 1, not 0"),
        ("rounds", 0, "rounds must be at least 1, not 0"),
        ("rounds", 2**31, "rounds must be at most 2147483647, not 2147483648"),
        ("rounds", 2.0, "rounds: input should be a valid integer"),
        ("correction_steps", -1, "correction_steps must be at least 1, not -1"),
        ("revise", "", "revise must be some text, not ''"),
        ("teacher_temperature", -0.1, "teacher_temperature must be at least 0, not -0.1"),
        ("boundary", "none", "boundary: input should be 'adaptive', 'static' or 'quantile'"),
        ("backtrack", "all", "backtrack: input should be 'td_error' or 'none'"),
        ("stitch", "none", "stitch: input should be 'flawed' or 'clean'"),
        ("trace", True, "trace: input should be 'none', 'summary' or 'full'"),
        ("events", 1, "events: input should be a valid boolean"),
        ("events", "yes", "events: input should be a valid boolean"),
        ("base_threshold", "0.2", "base_threshold: input should be a valid number"),
        ("base_threshold", True, "base_threshold: input should be a valid number"),
        ("base_threshold", None, "base_threshold: input should be a valid number"),
        ("base_threshold", math.nan, "base_threshold: input should be a valid number"),
        ("entropy_scale", math.inf, "entropy_scale: input should be a valid number"),
        ("max_step_tokens", 1.5, "max_step_tokens: input should be a valid integer"),
        ("max_step_tokens", "1", "max_step_tokens: input should be a valid integer"),
        ("entropy_top_k", True, "entropy_top_k: input should be a valid integer"),
        ("delimiter", 3, "delimiter: input should be a valid string"),
        ("gama", 1, "gama is not a known field; did you mean 'gamma'?"),
        ("temperatur", 1, "temperatur is not a known field; did you mean 'temperature'?"),
        ("__pydantic_config__", {}, "__pydantic_config__ is not a known field"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_in_a_sentence(
    field: str, value: object, message: str
) -> None:
    error = refusal_of({field: value})
    assert (error.field, str(error)) == (field, message)


@pytest.mark.parametrize("field", ["rounds", "correction_steps"])
def test_the_options_of_rounds_belong_to_motab_alone(field: str) -> None:
    layers: tuple[dict[str, Any], ...]
    for layers in (({"method": "teacher", field: 2},), ({"method": "skd"}, {field: 2})):
        error = refusal_of(*layers)
        method = layers[0]["method"]
        assert (error.field, str(error)) == (
            field,
            f"{field} must be 1 with method '{method}', not 2",
        )
    # A model's default is no reason to refuse a request for another method.
    options = parse_options({field: 2}, {"method": "student"}, {"max_total_tokens": 9})
    assert (getattr(options, field), options.method) == (1, "student")
    assert getattr(parse_options({"method": "student"}, {"method": "motab", field: 2}), field) == 2


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, "\ud800"], ids=["large", "low", "half"])
def test_a_value_that_json_cannot_carry_is_refused_by_its_field(value: object) -> None:
    field = "delimiter" if isinstance(value, str) else "max_total_tokens"
    assert refusal_of({field: value}).field == field


QUANTILE = {"boundary": "quantile"}


@pytest.mark.parametrize("values", [[0.5], [0, 1, 0.25], [0.1] * 64])
def test_a_boundary_by_step_takes_a_value_for_each_step(values: list[float]) -> None:
    assert parse_options(QUANTILE, {"boundary_values": values}).boundary_values == tuple(values)


@pytest.mark.parametrize(
    ("asked", "field", "message"),
    [
        (QUANTILE, "", "must have 1 to 64 values for boundary 'quantile', not 0"),
        (
            QUANTILE | {"boundary_values": []},
            "",
            "must have 1 to 64 values for boundary 'quantile', not 0",
        ),
        (QUANTILE | {"boundary_values": [0.1] * 65}, "", "has more than 64 values"),
        (
            {"boundary_values": [0.1]},
            "",
            "are for boundary 'quantile', and boundary is 'adaptive'",
        ),
        (
            {"boundary": "static", "boundary_values": [0.1]},
            "",
            "are for boundary 'quantile', and boundary is 'static'",
        ),
        (
            QUANTILE | {"boundary_values": [0.1, 1.5]},
            "",
            "must be in [0, 1], and value 1 is 1.5",
        ),
        (QUANTILE | {"boundary_values": [-0.1]}, "", "must be in [0, 1], and value 0 is -0.1"),
        (QUANTILE | {"boundary_values": 0.1}, "", ": input should be a valid array"),
        (QUANTILE | {"boundary_values": None}, "", ": input should be a valid array"),
        (QUANTILE | {"boundary_values": {"0": 0.1}}, "", ": input should be a valid array"),
        (QUANTILE | {"boundary_values": [0.1, math.nan]}, ".1", ": input should be a valid number"),
        (QUANTILE | {"boundary_values": [True]}, ".0", ": input should be a valid number"),
        (QUANTILE | {"boundary_values": ["0.1"]}, ".0", ": input should be a valid number"),
        (QUANTILE | {"boundary_values": [[0.1]]}, ".0", ": input should be a valid number"),
    ],
    ids=str,
)
def test_a_boundary_by_step_that_makes_no_sense_is_refused(
    asked: dict[str, Any], field: str, message: str
) -> None:
    error, path = refusal_of(asked), f"boundary_values{field}"
    assert error.field == path
    assert str(error) == f"{path}{message if message.startswith(':') else ' ' + message}"


def test_a_layer_that_chooses_another_boundary_leaves_the_values_behind() -> None:
    own = QUANTILE | {"boundary_values": [0.1, 0.2]}
    assert parse_options(own, {"base_threshold": 0.3}).boundary_values == (0.1, 0.2)
    assert parse_options(own, QUANTILE).boundary_values == (0.1, 0.2)
    assert parse_options(own, {"boundary": "static"}).boundary_values == ()
    assert parse_options(own, {"boundary_values": [0.3]}).boundary_values == (0.3,)
    assert refusal_of(own, {"boundary": "static", "boundary_values": [0.3]}).field == (
        "boundary_values"
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -0.5])
def test_a_boundary_by_step_made_in_code_is_checked_too(value: float) -> None:
    with pytest.raises(ParameterError, match="and value 1 is ") as caught:
        Params(boundary="quantile", boundary_values=(0.5, value))
    assert caught.value.field == "boundary_values"


def test_an_unknown_method_is_refused_with_those_there_are() -> None:
    error = refusal_of({"method": "guess"})
    assert error.field == "method"
    assert str(error).startswith("method: input should be 'motab', ")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", ["base_threshold", "entropy_scale", "teacher_temperature"])
def test_params_made_in_code_refuse_what_is_not_finite(field: str, value: float) -> None:
    with pytest.raises(ParameterError, match="must be a finite number") as caught:
        Params(**{field: value})  # type: ignore[arg-type]
    assert caught.value.field == field


def test_options_are_checked_when_made_in_code_too() -> None:
    with pytest.raises(ParameterError, match="entropy_top_k must be at least 2, not 1"):
        Options(entropy_top_k=1)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("extra_forbidden", "x.y is not a known field"),
        ("unexpected_keyword_argument", "x.y is not a known field"),
        ("missing", "x.y is missing"),
        ("missing_argument", "x.y is missing"),
        ("int_type", "x.y: input should be a valid integer"),
    ],
)
def test_a_complaint_becomes_one_sentence_that_names_the_field(kind: str, sentence: str) -> None:
    complaint = Complaint((), kind, "Input should be a valid integer", {})
    assert complaint.about("x.y") == sentence
