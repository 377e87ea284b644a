"""Masks and weights against values computed by hand."""

import math
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synth_client.training_data.filters import Filters
from tests.support.records import breached, record_of, several, unbroken
from tests.support.synth_client.exports import written
from tests.support.trainer.recipes import FILE
from trainer.errors import RecipeError
from trainer.foreign.weigh_tokens import Fit, Token, log_ratio, place_of, tokens_of
from trainer.training.loss_spans import export_with_spans, learned
from trainer.training.recipe import DftLoss, Recipe, SftLoss, WeightedLoss
from trajectory_records.record import Record

LOG = math.log


def weighted(level: str = "token", **changes: Any) -> WeightedLoss:
    fields = {"kind": "weighted", "level": level, **changes}
    return WeightedLoss.model_validate(fields)


def fit(level: str = "token", power: float = 1.0, low: float = 0.1, high: float = 10.0) -> Fit:
    return Fit(level, power, low, high)


def scored(text: str, role: str = "teacher", **told: tuple[list[int], list[float]]) -> Record:
    fields = unbroken(
        output=text, spans=[{"role": role, "start": 0, "end": len(text)}], steps=[], scoring=None
    )
    fields["token_logprobs"] = {
        model: {"ends": ends, "logprobs": logprobs} for model, (ends, logprobs) in told.items()
    }
    return record_of(fields)


SAME = scored(
    "ab.\n\ncd",
    student=([2, 5, 7], [LOG(0.5), LOG(0.8), LOG(0.1)]),
    teacher=([2, 5, 7], [LOG(0.25), LOG(0.8), LOG(0.4)]),
)


def raw(tokens: list[Token]) -> list[float | None]:
    return [token.unnormalised for token in tokens]


def test_where_the_tokens_are_the_same_the_ratio_is_that_of_their_probabilities() -> None:
    learn = learned(SAME, weighted())
    assert raw(tokens_of(learn, [2, 5, 7], fit())) == pytest.approx([2.0, 1.0, 0.25])
    assert raw(tokens_of(learn, [2, 5, 7], fit(power=2))) == pytest.approx([4.0, 1.0, 0.0625])
    assert raw(tokens_of(learn, [2, 5, 7], fit(power=0))) == [1.0, 1.0, 1.0]


def test_the_ratio_is_clipped_before_its_power_is_taken() -> None:
    learn = learned(SAME, weighted())
    found = raw(tokens_of(learn, [2, 5, 7], fit(power=2, low=0.5, high=1.5)))
    assert found == pytest.approx([2.25, 1.0, 0.25])


def test_another_tokenizer_s_log_probability_is_spread_over_its_characters() -> None:
    # The teacher's one token of 4 characters has 1/16: each character 1/2.
    record = scored("abcd", student=([1, 4], [LOG(0.5), LOG(0.25)]), teacher=([4], [LOG(1 / 16)]))
    learn = learned(record, weighted())
    assert log_ratio(learn, 0, 1) == pytest.approx(LOG(0.5) - LOG(0.5))
    assert log_ratio(learn, 1, 4) == pytest.approx(LOG(0.25) - LOG(1 / 8))
    assert raw(tokens_of(learn, [1, 4], fit())) == pytest.approx([1.0, 2.0])


def test_all_tokens_of_a_step_have_its_geometric_mean() -> None:
    learn = learned(SAME, weighted("step"))
    assert [unit["end"] for unit in learn["units"]] == [5, 7]
    # The first step: 0.5 * 0.8 against 0.25 * 0.8, over two tokens.
    root = math.sqrt(2)
    assert raw(tokens_of(learn, [2, 5, 7], fit("step"))) == pytest.approx([root, root, 0.25])


def test_tokens_that_make_one_character_share_its_ratio() -> None:
    record = scored(
        "a🚀b",
        student=([1, 1, 2, 3], [LOG(0.5), LOG(0.2), LOG(0.2), LOG(0.5)]),
        teacher=([1, 1, 2, 3], [LOG(0.5), LOG(0.1), LOG(0.1), LOG(0.25)]),
    )
    learn = learned(record, weighted())
    # Half of the rocket is a token, and so is the rest: 0.04 against 0.01, so 2 for each.
    assert raw(tokens_of(learn, [1, 2, 2, 3], fit())) == pytest.approx([1.0, 2.0, 2.0, 2.0])


def test_only_what_the_teacher_wrote_is_weighted_and_the_mask_decides_what_is_learned() -> None:
    fields = breached()
    length = len(fields["output"])
    told = {"ends": [length], "logprobs": [-1.0]}
    fields["token_logprobs"] = {"student": told, "teacher": {**told, "logprobs": [-2.0]}}
    record = record_of(fields)
    roles = [span.role for span in record.spans]
    assert roles == ["student", "flawed", "revise", "teacher"]
    ends = [span.end for span in record.spans]
    for mask, wanted in (
        ("all", [True, True, True, True]),
        ("correction", [False, False, True, True]),
        ("unflawed", [True, False, True, True]),
    ):
        found = tokens_of(learned(record, weighted(mask=mask)), ends, fit())
        assert [token.learned for token in found] == wanted
        assert [token.unnormalised is not None for token in found] == [False, False, False, True]
    plain = learned(record, SftLoss(kind="sft", mask="correction"))
    assert raw(tokens_of(plain, ends, None)) == [None] * 4


def test_a_token_belongs_to_the_span_in_which_it_ends_and_the_turn_s_end_to_the_last() -> None:
    learn = {
        "units": [
            {"end": 2, "learned": False, "weighted": False},
            {"end": 6, "learned": True, "weighted": True},
        ],
        "student": {"ends": [6], "sums": [-6.0]},
        "teacher": {"ends": [6], "sums": [-12.0]},
    }
    # Before the output; in the first unit; across both; in the second; the turn's end.
    found = tokens_of(learn, [0, 1, 4, 6, 16], fit(high=1000.0))
    assert [token.learned for token in found] == [False, False, True, True, True]
    assert raw(found) == [None, None, pytest.approx(math.exp(3)), pytest.approx(math.exp(2)), None]


def test_by_prefix_every_token_of_the_output_has_both_log_probabilities() -> None:
    fields = breached()
    length = len(fields["output"])
    ends = [span["end"] for span in fields["spans"]]
    told = {"ends": ends, "logprobs": [-1.0, -2.0, -3.0, -4.0]}
    teacher = {"ends": [length], "logprobs": [-float(length)]}
    fields["token_logprobs"] = {"student": told, "teacher": teacher}
    learn = learned(record_of(fields), weighted("prefix", mask="correction"))
    # Before the output; its four spans, the last of two tokens for one character; the turn's end.
    found = tokens_of(learn, [0, *ends, length, length + 2], fit("prefix"))
    assert [token.learned for token in found] == [False, False, False, True, True, True, True]
    assert raw(found) == [None, None, None, None, 1.0, 1.0, None]
    assert [token.student for token in found[1:-1]] == [-1.0, -2.0, -3.0, -2.0, -2.0]
    widths = [ends[0], ends[1] - ends[0], ends[2] - ends[1], (length - ends[2]) / 2]
    wanted = pytest.approx([-width for width in [*widths, widths[-1]]])
    assert [token.teacher for token in found[1:-1]] == wanted
    assert math.isnan(found[0].teacher)
    assert math.isnan(found[-1].teacher)


@pytest.mark.parametrize(
    ("changes", "hardware", "fault"),
    [
        ({"level": "token", "discount": 0.5}, {}, "discount is of level: prefix, not of level: t"),
        ({"level": "step", "renew": False}, {}, "renew is of level: prefix, not of level: step"),
        ({"level": "prefix", "discount": 0}, {}, "discount"),
        ({"level": "prefix"}, {}, "hardware.per_device must be 2 or more, not 1"),
        ({"level": "prefix"}, {"kind": "gpu", "gpus": 2}, "hardware.per_device must be 2 or more"),
    ],
)
def test_settings_of_a_prefix_are_checked(
    changes: dict[str, Any], hardware: dict[str, Any], fault: str
) -> None:
    loss = {"kind": "weighted", **changes}
    with pytest.raises(ValueError, match=fault):
        Recipe.model_validate(FILE | {"loss": loss} | ({"hardware": hardware} if hardware else {}))


LOGPROBS = st.floats(-20, 0)


@settings(deadline=None)
@given(st.data())
def test_cut_in_any_way_the_tokens_ratios_make_up_the_whole_text_s(data: st.DataObject) -> None:
    length = data.draw(st.integers(1, 30))
    cuts = st.sets(st.integers(1, length)).map(lambda ends: sorted({*ends, length}))

    def model() -> tuple[list[int], list[float]]:
        ends = data.draw(cuts)
        return ends, data.draw(st.lists(LOGPROBS, min_size=len(ends), max_size=len(ends)))

    student, teacher = model(), model()
    learn = learned(scored("x" * length, student=student, teacher=teacher), weighted())
    found = raw(tokens_of(learn, data.draw(cuts), fit(low=1e-300, high=1e300)))
    product = math.fsum(LOG(x) for x in found if x is not None)
    assert product == pytest.approx(sum(student[1]) - sum(teacher[1]), abs=1e-6)


def test_an_answer_that_was_cut_keeps_what_is_left_of_its_tokens() -> None:
    tokens = [Token(True, None), Token(False, None), Token(True, 2.0)]
    whole = place_of([-100, -100, 7, 8, 9], [7, 8, 9], tokens, 1)
    assert (whole.start, whole.tokens) == (2, tokens)
    cut = place_of([-100, -100, 7, 8], [7, 8, 9], tokens, 1)
    assert (cut.start, cut.tokens) == (2, tokens[:2])
    # An earlier turn came before the cut, the answer did not.
    assert place_of([-100, 5, -100], [7, 8, 9], tokens, 2).tokens == []
    # Some templates add the end of the sequence.
    assert place_of([-100, 7, 8, 9, 2], [7, 8, 9], tokens, 1).tokens == [*tokens, Token(True, None)]
    with pytest.raises(ValueError, match="other tokens"):
        place_of([-100, 7, 9], [7, 8, 9], tokens, 1)


def test_records_without_anything_to_learn_are_left_out_and_counted(tmp_path: Path) -> None:
    there = [record_of(unbroken(id="good")), record_of(breached())]
    source = written(tmp_path / "records.jsonl", there)
    mask = SftLoss(kind="sft", mask="correction")
    kept = export_with_spans(source, tmp_path / "data", Filters(()), mask)
    assert (kept.num_kept, dict(kept.dropped)) == (1, {"mask: correction": 1})
    (line,) = (tmp_path / "data" / "train.jsonl").read_bytes().splitlines()
    fields = orjson.loads(line)
    assert fields["messages"][-1]["content"] == there[1].output == fields["learn"]["output"]
    alone = written(tmp_path / "alone.jsonl", there[:1])
    with pytest.raises(RecipeError, match=r"loss\.mask: correction leaves nothing to learn"):
        export_with_spans(alone, tmp_path / "data", Filters(()), mask)


def test_the_marks_stay_with_their_records_where_texts_are_left_out(tmp_path: Path) -> None:
    text = "It is <video>."
    spans = [{"role": "teacher", "start": 0, "end": len(text)}]
    markup = record_of(unbroken(id="markup", output=text, spans=spans, steps=[]))
    source = written(tmp_path / "records.jsonl", [markup, record_of(breached())])
    mask = SftLoss(kind="sft", mask="unflawed")
    kept = export_with_spans(source, tmp_path / "data", Filters(()), mask)
    assert (kept.num_kept, dict(kept.dropped)) == (1, {"no-media-words": 1})
    (line,) = (tmp_path / "data" / "train.jsonl").read_bytes().splitlines()
    fields = orjson.loads(line)
    assert fields["messages"][-1]["content"] == fields["learn"]["output"]


def test_weights_need_scored_records(tmp_path: Path) -> None:
    source = written(tmp_path / "records.jsonl", [record_of(unbroken(id="x"))])
    with pytest.raises(RecipeError, match=r"token_logprobs in every record, but x, .* motab score"):
        export_with_spans(source, tmp_path / "data", Filters(()), weighted())


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"data": {"kind": "export", "path": "x"}}, "loss.mask needs data.kind: records"),
        ({"training": {"packing": "neat"}}, "loss.mask needs training.packing: none, not neat"),
    ],
)
def test_what_cannot_be_masked_is_refused_by_name(changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        Recipe.model_validate(FILE | {"loss": {"kind": "dft", "mask": "unflawed"}} | changes)


def test_dft_can_be_masked() -> None:
    recipe = Recipe.model_validate(FILE | {"loss": {"kind": "dft", "mask": "unflawed"}})
    assert recipe.loss == DftLoss(kind="dft", mask="unflawed")
    assert recipe.loss_by_span == recipe.loss


@pytest.mark.parametrize("changes", [{"power": -1}, {"clip_low": 0}, {"clip_high": 0.5}])
def test_weights_out_of_range_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        weighted(**changes)


@pytest.mark.parametrize("num", [1, 2, 3])
def test_every_correction_is_learned_and_weighted_by_its_own_steps(num: int) -> None:
    fields = several(*[(1, 1), (0, 2), (2, 1)][:num], tail=1)
    logprobs = {"ends": [len(fields["output"])], "logprobs": [-1.0]}
    fields["token_logprobs"] = {"student": logprobs, "teacher": logprobs}
    record = record_of(fields)
    units = learned(record, weighted("step", mask="correction"))["units"]
    starts = [0, *(unit["end"] for unit in units)]
    by_fit = [
        record.output[a : one["end"]]
        for a, one in zip(starts, units, strict=False)
        if one["weighted"]
    ]
    assert by_fit == [f"teacher {number}.\n\n" for number in range(num)]
    assert [unit["learned"] for unit in units] == [
        span.role in {"revise", "teacher"} for span in record.spans
    ]
