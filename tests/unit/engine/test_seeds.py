"""The seeds of choices, writes and draws: a published trajectory must come out again."""

import pytest

from proxy.backends.base import Message, Question, Sampling
from proxy.engine.seeds import seed_of_choice, seed_of_draws, seed_of_write

CHAT = Question(messages=(Message("user", "1 + 1?"),))


@pytest.mark.parametrize(
    ("seed", "index", "expected"),
    [(7, 0, 7), (7, 3, 10), (-5, 2, -3), (2**63 - 1, 1, -(2**63))],
)
def test_a_choice_has_the_seed_after_the_one_before_it(
    seed: int, index: int, expected: int
) -> None:
    assert seed_of_choice(seed, index) == expected


@pytest.mark.parametrize(
    ("seed", "num_before", "expected"),
    [
        (7, 0, 7),
        (7, 1, -7046029254386353124),
        (7, 2, 4354685564936845361),
        (-(2**63), 1, 2177342782468422677),
    ],
)
def test_a_later_write_has_a_seed_of_its_own(seed: int, num_before: int, expected: int) -> None:
    assert seed_of_write(seed, num_before) == expected


def test_the_draws_of_a_method_follow_from_the_seed_and_the_question() -> None:
    assert seed_of_draws(7, CHAT) == 15439745154103587985
    assert seed_of_draws(8, CHAT) == 2108470401414626537
    assert seed_of_draws(7, Question(prompt="1 + 1?")) == 18443325227210429007


def test_without_a_seed_draws_are_left_to_chance() -> None:
    assert len({seed_of_draws(None, CHAT) for _ in range(10)}) == 10


@pytest.mark.parametrize(
    ("seed", "expected"),
    [(None, None), (0, 0), (2**31, 0), (2**63 - 1, 2**31 - 1), (-1, 2**31 - 1)],
)
def test_servers_with_short_seeds_get_the_low_31_bits(
    seed: int | None, expected: int | None
) -> None:
    assert Sampling(1.0, seed=seed).seed_31_bits == expected
