import sys

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.backends.base import Context, Segment
from proxy.backends.servers.vocabulary import Vocabulary
from proxy.backends.token_ids import Pieces, TokenIds
from proxy.errors import TokenizerFailed, UnknownToken

# A block has 512 items, so runs of this many cross the borders of several.
runs = st.tuples(st.integers(0, 700), st.integers(0, 2**31)).map(
    lambda run: [run[1] + index for index in range(run[0])]
)
places = st.none() | st.integers(-1300, 1300)


def written(token_ids: TokenIds) -> list[int]:
    found: list[int] = orjson.loads(orjson.dumps(token_ids.fragment()))
    return found


@given(runs, st.lists(runs | st.integers(0, 1500), max_size=5), places, places)
def test_ids_and_their_json_stay_the_same_list_however_it_grows_and_shrinks(
    first: list[int], changes: list[list[int] | int], start: int | None, end: int | None
) -> None:
    token_ids, model = TokenIds(first), list(first)
    for change in changes:
        if isinstance(change, int):
            token_ids.truncate(change)
            del model[change:]
        else:
            token_ids.extend(change)
            model += change
        assert token_ids == model
        assert list(token_ids) == model
        assert len(token_ids) == len(model)
        assert token_ids[start:end] == model[start:end]
        assert token_ids[start:end:-3] == model[start:end:-3]
        assert written(token_ids) == model
        if model:
            assert token_ids.extremes == (min(model), max(model))
            assert [token_ids[0], token_ids[len(model) // 2]] == [model[0], model[len(model) // 2]]
            assert token_ids[-1] == model[-1]
        with pytest.raises(IndexError):
            token_ids[len(model)]


@given(runs, runs, st.integers(0, 1000))
def test_the_first_ids_continue_in_a_way_of_their_own(
    first: list[int], more: list[int], num: int
) -> None:
    token_ids = TokenIds(first)
    apart = token_ids.first(num)
    apart.extend(more)
    token_ids.extend([7])
    assert token_ids == [*first, 7]
    assert apart == first[:num] + more
    assert written(apart) == first[:num] + more
    assert token_ids != TokenIds([*first, 8])


@given(st.lists(st.lists(st.text(max_size=3), max_size=600), max_size=4), places, places)
def test_pieces_are_a_list_that_grows(
    parts: list[list[str]], start: int | None, end: int | None
) -> None:
    pieces, model = Pieces(), list[str]()
    for part in parts:
        pieces.extend(part)
        model += part
    assert pieces == model
    assert len(pieces) == len(model)
    assert pieces[start:end] == model[start:end]


@pytest.mark.parametrize("num_before", [0, 511])
def test_a_number_of_more_than_64_bits_is_refused(num_before: int) -> None:
    with pytest.raises(TokenizerFailed, match=f"{2**64} is no token's id"):
        TokenIds([1] * num_before + [2**64]).fragment()


def test_a_vocabulary_finds_the_token_that_it_lacks_among_many() -> None:
    vocabulary = Vocabulary("teacher", 100)
    many = Segment("many", tuple(range(100)) * 20)
    for ids, unknown in (((100, 7), 100), ((-1, 5), -1)):
        context = Context(Segment("q", (1, 99)), [many, Segment("b", ids), many])
        with pytest.raises(UnknownToken, match=f"the token {unknown},"):
            vocabulary.require(context.token_ids)
        context.truncate(1)
        vocabulary.require(context.token_ids)


def test_an_id_of_a_long_context_takes_little_more_than_its_digits() -> None:
    ids = tuple(range(100_000, 100_000 + 64 * 512))
    own = Context(Segment("", ()), [Segment("x", ids)]).token_ids
    size = sys.getsizeof(own._full) + sum(map(sys.getsizeof, (b.ids for b in own._full)))
    assert not own._open
    assert size < 7.2 * len(ids)
    assert not hasattr(own, "__dict__")


def test_a_context_takes_its_steps_from_the_ids_that_it_holds_once() -> None:
    steps = [Segment("a", (3,)), Segment("", ()), Segment("b", (4, 5))]
    context = Context(Segment("q", (1, 2)), steps)
    assert context.steps == steps
    assert [context.num_ids(index) for index in range(3)] == [1, 0, 2]
    context.look_ahead(9)
    apart = context.copy()
    apart.append(Segment("c", (6,)))
    assert context.token_ids == [1, 2, 3, 4, 5, 9]
    assert apart.token_ids == [1, 2, 3, 4, 5, 6]
    assert [step.text for step in apart.steps] == ["a", "", "b", "c"]
