import math
import random
from typing import Any

import pytest

from proxy.core.types import Role
from synth_client.report.authorship import TextKind, handover_of, passages_of
from synth_client.report.likelihood import (
    BIN_WIDTHS,
    NUM_BINS,
    OTHER_METHODS,
    Likelihoods,
    Ratio,
    Reach,
    points_of,
)
from tests.support.records import (
    CORRECTION,
    FLAWED,
    REVISE,
    SAFE,
    breached,
    left_out,
    record_of,
    spans_of,
    unbroken,
)
from tests.support.synth_client.reports import evenly
from trajectory_records.parts import ModelLogprobs
from trajectory_records.text_logprobs import TextLogprobs

STUDENT, TEACHER = TextKind("student", after_other=False), TextKind("teacher", after_other=False)
CORRECTED, RESUMED = TextKind("teacher", after_other=True), TextKind("student", after_other=True)
DRAFT = len("".join(SAFE + FLAWED))


def written(
    parts: list[tuple[Role, str]],
    student: dict[str, Any] | None = None,
    teacher: dict[str, Any] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """A record of such spans; where not given, the student's tokens are of 2 characters and -0.5,
    the teacher's of 4 and -0.8.
    """
    output = "".join(text for _, text in parts)
    both = {
        "student": student or evenly(output, 2, -0.5),
        "teacher": teacher or evenly(output, 4, -0.8),
    }
    fields = {"output": output, "spans": spans_of(parts), "steps": [], "token_logprobs": both}
    return unbroken(**{**fields, **changes})


def likelihoods_of(*records: dict[str, Any]) -> Likelihoods:
    run = Likelihoods()
    for fields in records:
        run.add(record_of(fields))
    return run


def reading(ends: list[int], logprobs: list[float]) -> TextLogprobs:
    return TextLogprobs(ModelLogprobs(ends=tuple(ends), logprobs=tuple(logprobs)))


def test_safe_and_flawed_steps_are_one_passage_and_the_revise_token_is_nobodys() -> None:
    passages = passages_of(record_of(breached()))
    assert [(one.kind, one.start, one.end) for one in passages] == [
        (STUDENT, 0, DRAFT),
        (CORRECTED, DRAFT + len(REVISE), DRAFT + len(REVISE) + len(CORRECTION)),
    ]
    assert handover_of(passages) == DRAFT


def test_whoever_writes_after_the_other_does_so_in_a_context_of_both() -> None:
    parts: list[tuple[Role, str]] = [("teacher", "ab"), ("student", "cd"), ("teacher", "ef")]
    passages = passages_of(record_of(written(parts)))
    assert [one.kind for one in passages] == [TEACHER, RESUMED, CORRECTED]
    assert handover_of(passages) is None


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_text_of_one_hand_has_no_handover(role: Role) -> None:
    assert handover_of(passages_of(record_of(written([(role, "abcd")])))) is None


def test_without_the_flawed_steps_the_handover_is_behind_the_safe_ones() -> None:
    clean = passages_of(record_of(left_out()))
    assert handover_of(clean) == len("".join(SAFE))


def test_a_token_over_a_seam_belongs_to_the_stretch_it_ends_in() -> None:
    one = reading([3, 5, 9], [-1.0, -2.0, -4.0])
    assert one.tokens(0, 4) == (1, -1.0)
    assert one.tokens(4, 9) == (2, -6.0)


def test_a_tokens_log_probability_is_spread_over_its_characters() -> None:
    one = reading([3, 5, 9], [-1.5, -2.0, -4.0])
    assert one.characters(0, 4) == pytest.approx(-1.5 - 1.0)
    assert one.characters(4, 6) == pytest.approx(-1.0 - 1.0)
    assert one.characters(1, 2) == pytest.approx(-0.5)
    assert one.characters(0, 9) == pytest.approx(-7.5)


@pytest.mark.parametrize("ends", [[1, 1, 2], [0, 1, 2]])
def test_tokens_within_one_character_are_counted_once(ends: list[int]) -> None:
    one = reading(ends, [-1.0, -2.0, -4.0])
    assert one.tokens(0, 1) == (2, -3.0)
    assert one.tokens(0, 2) == (3, -7.0)
    assert one.characters(0, 1) + one.characters(1, 2) == pytest.approx(-7.0)


def test_a_ratio_has_the_interval_of_a_ratio_estimator() -> None:
    ratio = Ratio()
    ratio.add(2, -1.0)
    ratio.add(0, 0.0)
    assert ratio.estimate().value == -0.5
    assert ratio.estimate().low is None
    ratio.add(3, -4.0)
    estimate = ratio.estimate()
    # Residuals 1 and -1, so the variance of the sum is 2 * 2 / 1, and its root of 2 is over 5.
    assert (estimate.value, estimate.num) == (-1.0, 2)
    assert estimate.low == pytest.approx(-1 - 1.96 * 0.4)
    assert estimate.high == pytest.approx(-1 + 1.96 * 0.4)


def test_the_interval_is_what_resampling_the_trajectories_gives() -> None:
    draw = random.Random(0)
    pairs = []
    for _ in range(60):
        size = draw.randint(20, 400)
        pairs.append((size, size * draw.uniform(-1.2, -0.4)))
    ratio = Ratio()
    for size, amount in pairs:
        ratio.add(size, amount)
    means = []
    for _ in range(2000):
        drawn = draw.choices(pairs, k=len(pairs))
        means.append(sum(amount for _, amount in drawn) / sum(size for size, _ in drawn))
    means.sort()
    estimate = ratio.estimate()
    assert estimate.low == pytest.approx(means[50], abs=0.01)
    assert estimate.high == pytest.approx(means[-51], abs=0.01)


def test_confidence_is_the_geometric_mean_over_the_tokens_of_that_kind() -> None:
    run = likelihoods_of(
        written([("student", "abcd"), ("revise", "\n\n"), ("teacher", "efghijkl")]),
        written([("student", "abcdefgh")], teacher={"ends": [8], "logprobs": [-2.0]}),
        written([("teacher", "abcd")]),
    )
    assert set(run.by_kind) == {STUDENT, CORRECTED, TEACHER}
    student = run.by_kind[STUDENT]
    assert student.by("student").estimate().value == pytest.approx(-0.5)
    # One token of -0.8 in the first, one of -2 in the second.
    assert student.by("teacher").estimate().value == pytest.approx(-1.4)
    assert student.by("teacher").estimate().num == 2
    # The teacher's tokens end at 4, 8, 12 and 14; that at 8 began in the revise token.
    assert run.by_kind[CORRECTED].by("teacher").num == 1
    assert run.by_kind[CORRECTED].by("teacher").estimate().value == pytest.approx(-0.8)


def test_the_divergence_is_the_writers_log_probability_minus_the_others_by_character() -> None:
    # The student's -0.5 for 2 characters are -0.25 each, the teacher's -0.8 for 4 are -0.2.
    run = likelihoods_of(written([("student", "abcd" * 5)]), written([("teacher", "abcd" * 5)]))
    assert run.by_kind[STUDENT].divergence.estimate().value == pytest.approx(-0.05)
    assert run.by_kind[TEACHER].divergence.estimate().value == pytest.approx(0.05)


def test_positions_are_counted_from_where_a_text_begins() -> None:
    student = {"ends": [40, 50, 70, 90], "logprobs": [-9.0, -9.0, -1.0, -3.0]}
    record = written([("student", "a" * 40), ("teacher", "b" * 50)], student=student)
    bins = likelihoods_of(record).over_length[CORRECTED][0]
    assert BIN_WIDTHS[0] == 25
    assert sorted(bins) == [0, 1]
    # 40 to 65 holds the token that ends at 50, 65 to 90 the last two.
    assert bins[0].by("student").estimate().value == pytest.approx(-9.0)
    assert bins[1].by("student").estimate().value == pytest.approx(-2.0)
    # -9, 15/20 of -1, against 25/4 tokens of -0.8; the teacher wrote it.
    divergence = bins[0].divergence.estimate().value
    assert divergence == pytest.approx((9.75 - 25 / 4 * 0.8) / 25)


def test_passages_of_one_trajectory_are_one_observation() -> None:
    parts: list[tuple[Role, str]] = [("student", "abcd"), ("teacher", "efgh")] * 3
    run = likelihoods_of(written(parts), written(parts))
    assert run.by_kind[CORRECTED].divergence.num == 2
    assert run.over_length[CORRECTED][0][0].divergence.num == 2
    assert run.over_length[RESUMED][0][0].by("student").num == 2


def test_only_so_many_bins_of_each_width_are_kept() -> None:
    run = likelihoods_of(written([("student", "a" * 3000)]))
    profile = run.over_length[STUDENT]
    assert [len(bins) for bins in profile[:4]] == [NUM_BINS, NUM_BINS, 30, 15]
    assert run.reach.level(1.0) == 2
    assert run.reach.num_beyond(1) == 1


def test_the_width_is_the_smallest_that_holds_the_wanted_share() -> None:
    reach = Reach(num_bins=4)
    for length in (90, 100, 101, 5000):
        reach.add(length)
    assert [reach.level(share) for share in (0.5, 0.75, 1.0)] == [0, 1, 6]
    assert reach.num_beyond(1) == 1
    reach.add(10**9)
    assert reach.level(1.0) == len(BIN_WIDTHS) - 1
    assert reach.num_beyond(len(BIN_WIDTHS) - 1) == 1


def test_trajectories_are_lined_up_at_the_handover() -> None:
    teacher = {"ends": [30, 60, 100], "logprobs": [-1.0, -2.0, -3.0]}
    run = likelihoods_of(
        written(
            [("student", "a" * 60), ("revise", "b" * 10), ("teacher", "c" * 30)], None, teacher
        ),
        written([("student", "a" * 60)]),
    )
    assert run.num_handovers == 1
    bins = run.around_handover[0]
    # From 60 back: 35 to 60, 10 to 35, 0 to 10; and on: 60 to 85, 85 to 100.
    assert sorted(bins) == [-3, -2, -1, 0, 1]
    found = {index: one.estimate().value for index, one in of(bins, "teacher")}
    assert found == {-2: -1.0, -1: -2.0, 1: -3.0}


def of(bins: Any, model: Any) -> list[tuple[int, Ratio]]:
    return [(index, one.by(model)) for index, one in bins.items() if one.by(model).num]


def test_trajectories_are_followed_by_method_and_unknown_methods_together() -> None:
    text: list[tuple[Role, str]] = [("student", "ab" * 25)]
    run = likelihoods_of(written(text, method="plain"), written(text, method="<b>"), written(text))
    assert set(run.along) == {"motab", OTHER_METHODS}
    assert sorted(run.along["motab"]) == [*range(25)]
    assert run.along[OTHER_METHODS][24].by("student").num == 2


def test_records_without_token_logprobs_have_no_part() -> None:
    run = likelihoods_of(breached(), unbroken(), written([]))
    assert run.num_scored == 0
    assert not run.by_kind
    assert not run.along


def test_bins_that_few_trajectories_reach_are_not_shown() -> None:
    crowded, lonely = Ratio(), Ratio()
    for _ in range(20):
        crowded.add(1, -1.0)
    lonely.add(1, -5.0)
    found = [index for index, _ in points_of([(1, lonely), (0, crowded), (2, Ratio())], 20)]
    assert found == [0]


def test_trajectories_that_all_agree_leave_no_doubt() -> None:
    ratio = Ratio()
    for _ in range(3):
        ratio.add(10, -0.1)
    estimate = ratio.estimate()
    assert estimate.low is not None
    assert math.isclose(estimate.low, -0.01, abs_tol=1e-6)
