import sys

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.backends.base import Context, Segment
from proxy.backends.servers.vocabulary import Vocabulary
from proxy.backends.token_ids import TokenIds
from proxy.errors import TokenizerFailed, UnknownToken

ids = st.lists(st.integers(0, 2**31 - 1), max_size=8)


def written(token_ids: TokenIds) -> list[int]:
    found: list[int] = orjson.loads(orjson.dumps(token_ids.fragment()))
    return found


@given(ids, st.lists(ids | st.integers(0, 12), max_size=8))
def test_ids_and_their_json_stay_the_same_list_however_it_grows_and_shrinks(
    first: list[int], changes: list[list[int] | int]
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
        assert token_ids[1:3] == model[1:3]
        assert written(token_ids) == model
        if model:
            assert token_ids.extremes == (min(model), max(model))
            assert token_ids[-1] == model[-1]


@given(ids, ids, st.integers(0, 8))
def test_the_first_ids_are_a_list_of_their_own(first: list[int], more: list[int], num: int) -> None:
    token_ids = TokenIds(first)
    apart = token_ids.first(num)
    apart.extend(more)
    assert token_ids == first
    assert apart == first[:num] + more
    assert written(apart) == first[:num] + more
    assert token_ids != TokenIds([*first, 1])


@pytest.mark.parametrize("impossible", [2**31, -(2**31) - 1, 10**30])
def test_a_number_that_no_vocabulary_has_is_refused_and_nothing_is_added(impossible: int) -> None:
    token_ids = TokenIds([1, 2])
    with pytest.raises(TokenizerFailed, match=f"the id {impossible} cannot be a token's"):
        token_ids.extend([3, impossible])
    assert token_ids == [1, 2]
    assert written(token_ids) == [1, 2]


def test_a_vocabulary_finds_the_token_that_it_lacks_among_many() -> None:
    vocabulary = Vocabulary("teacher", 100)
    context = Context(Segment("q", (1, 99)), [Segment("a", (5,)), Segment("b", (100, 7))])
    with pytest.raises(UnknownToken, match="the token 100"):
        vocabulary.require(context.token_ids)
    context.truncate(1)
    vocabulary.require(context.token_ids)
    context.append(Segment("c", (-1,)))
    with pytest.raises(UnknownToken, match="the token -1"):
        vocabulary.require(context.token_ids)


def test_an_id_of_a_context_takes_four_bytes_and_its_json() -> None:
    num = 32_768
    context = Context(Segment("", ()), [Segment("x", tuple(range(100_000, 100_000 + num)))])
    own = context.token_ids
    size = sum(map(sys.getsizeof, (own._ids, own._json)))
    assert size < (4 + 7) * num * 1.13  # both grow with room for an eighth more
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
