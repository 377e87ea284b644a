import orjson

from proxy.backends.base import Context, Segment
from proxy.backends.shared_ids import shared_ids


def parsed(*ids: int) -> tuple[int, ...]:
    return tuple(orjson.loads(orjson.dumps(ids)))


def test_an_id_is_the_same_object_wherever_it_occurs() -> None:
    first, second = parsed(70_001, 70_002), parsed(70_002, 70_001)
    assert first[0] is not second[1]
    one, two = tuple(shared_ids(first)), tuple(shared_ids(second))
    assert one == first
    assert two == second
    assert one[0] is two[1]
    assert one[1] is two[0]


def test_contexts_share_the_ids_of_their_steps() -> None:
    contexts = [Context(Segment("", ()), [Segment("x", parsed(80_001))]) for _ in range(2)]
    assert contexts[0].token_ids == [80_001]
    assert contexts[0].token_ids[0] is contexts[1].token_ids[0]
    assert contexts[0].token_ids[0] is contexts[0].steps[0].token_ids[0]
