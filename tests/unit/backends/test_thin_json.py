"""Only the rows of log-probabilities that count become objects; what they say stays the same."""

from collections.abc import Collection
from typing import Any

import orjson
import pytest

from proxy.backends.tokens.thin_json import RowLayout

SGLANG = RowLayout(b"input_top_logprobs", b"[[", b"]]")
VLLM = RowLayout(b"prompt_logprobs", b'{"', b"}}")


def sglang(num: int) -> bytes:
    tops = [None, *([[-0.5, i, None], [-1.5, i + 1, None]] for i in range(1, num))]
    meta = {"prompt_tokens": num, "input_top_logprobs": tops, "output_top_logprobs": [[[-1.0, 3]]]}
    return orjson.dumps({"text": "]],[[", "meta_info": meta})


def vllm(num: int, token: str = "x") -> bytes:
    def entry(i: int) -> dict[str, Any]:
        return {"logprob": -i / 8, "rank": i, "decoded_token": token}

    rows = [None, *({str(i): entry(i), str(i + 7): entry(i + 7)} for i in range(1, num))]
    choice = {"text": "", "prompt_logprobs": rows, "prompt_token_ids": None}
    return orjson.dumps({"choices": [choice], "usage": {"details": {"cached_tokens": 0}}})


def rows_of(answer: Any) -> list[Any]:
    if "meta_info" in answer:
        return list(answer["meta_info"]["input_top_logprobs"])
    return list(answer["choices"][0]["prompt_logprobs"])


def without(answer: Any, wanted: Collection[int]) -> Any:
    rows = rows_of(answer)
    thin = [row if i in wanted else None for i, row in enumerate(rows)]
    if "meta_info" in answer:
        answer["meta_info"]["input_top_logprobs"] = thin
    else:
        answer["choices"][0]["prompt_logprobs"] = thin
    return answer


@pytest.mark.parametrize("wanted", [{1}, {1, 4}, {2, 5}, {3}, {6}, range(1, 7), range(5, 7)])
@pytest.mark.parametrize(("layout", "answer"), [(SGLANG, sglang(7)), (VLLM, vllm(7))])
def test_all_rows_but_the_wanted_ones_are_null(
    layout: RowLayout, answer: bytes, wanted: Collection[int]
) -> None:
    assert layout.loads(answer, 7, wanted) == without(orjson.loads(answer), wanted)


def test_a_single_row_is_read() -> None:
    assert VLLM.loads(vllm(2), 2, {1}) == orjson.loads(vllm(2))


@pytest.mark.parametrize("token", ['}},{"', "}},{", "}}]", '"}}]', '{"', '}}]}],"', "]]"])
@pytest.mark.parametrize("wanted", [{1}, {4}, {6}, range(3, 7)])
def test_a_token_that_looks_like_brackets_changes_nothing(
    token: str, wanted: Collection[int]
) -> None:
    answer = vllm(7, token)
    rows = rows_of(VLLM.loads(answer, 7, wanted))
    whole = rows_of(orjson.loads(answer))
    assert len(rows) == 7
    assert [rows[i] for i in wanted] == [whole[i] for i in wanted]


@pytest.mark.parametrize(("layout", "answer"), [(SGLANG, sglang(7)), (VLLM, vllm(7))])
@pytest.mark.parametrize("num_rows", [1, 2, 6, 8, 70])
def test_another_number_of_rows_than_expected_is_read_as_it_is(
    layout: RowLayout, answer: bytes, num_rows: int
) -> None:
    assert layout.loads(answer, num_rows, {1}) == orjson.loads(answer)
    assert layout.loads(answer, num_rows, {num_rows - 1}) == orjson.loads(answer)


@pytest.mark.parametrize("layout", [SGLANG, VLLM])
@pytest.mark.parametrize(
    "answer",
    [
        b"{}",
        b"null",
        orjson.dumps(orjson.loads(sglang(7)), option=orjson.OPT_INDENT_2),
        orjson.dumps(orjson.loads(vllm(7)), option=orjson.OPT_INDENT_2),
        b'{"choices":[{"prompt_logprobs":null}]}',
        b'{"meta_info":{"input_top_logprobs":[null,[],[]]}}',
    ],
)
def test_an_answer_written_in_another_way_is_read_whole(layout: RowLayout, answer: bytes) -> None:
    assert layout.loads(answer, 7, {3}) == orjson.loads(answer)


def test_a_null_row_stays_one() -> None:
    answer = without(orjson.loads(vllm(7)), {1, 2, 4, 5, 6})
    assert rows_of(VLLM.loads(orjson.dumps(answer), 7, {3}))[3] is None


@pytest.mark.parametrize("wanted", [{3}, {1}, {0, 3}, ()])
def test_a_wanted_row_that_is_no_json_makes_the_answer_none(wanted: Collection[int]) -> None:
    broken = vllm(7).replace(b"-0.375", b"NaN")
    if not wanted or {0, 3} & set(wanted):
        with pytest.raises(orjson.JSONDecodeError):
            VLLM.loads(broken, 7, wanted)
    else:
        VLLM.loads(broken, 7, wanted)


@pytest.mark.parametrize("answer", [vllm(7)[:-9], sglang(7)[:-1], b"<html>"])
def test_an_answer_that_breaks_off_is_no_json(answer: bytes) -> None:
    for layout in (SGLANG, VLLM):
        with pytest.raises(orjson.JSONDecodeError):
            layout.loads(answer, 7, {3})


def own(*rows: int) -> dict[int, bytes]:
    """The beginning of vLLM's rows: the prompt's own token."""
    return {i: b'%d":{"logprob":' % i for i in rows}


@pytest.mark.parametrize("token", ["x", '"},"', '}},{"', ",", "}}]"])
@pytest.mark.parametrize("wanted", [range(1, 7), range(4, 7), {6}])
def test_a_cut_row_has_one_number_left(token: str, wanted: Collection[int]) -> None:
    answer = vllm(7, token)
    rows = rows_of(VLLM.loads(answer, 7, wanted, own(*set(wanted) - {4})))
    whole = rows_of(orjson.loads(answer))
    for i in set(wanted) - {4}:
        assert rows[i][str(i)]["logprob"] == whole[i][str(i)]["logprob"] == -i / 8
    if 4 in wanted:
        assert rows[4] == whole[4]
    if token == "x":
        assert all(rows[i] == {str(i): {"logprob": -i / 8}} for i in set(wanted) - {4})
        assert all(rows[i] is None for i in range(1, 7) if i not in wanted)


def test_a_row_that_begins_otherwise_is_not_cut() -> None:
    answer = vllm(7)
    others = {3: b'10":{"logprob":', 5: b'5":{"rank":'}
    rows = rows_of(VLLM.loads(answer, 7, range(1, 7), others))
    assert rows == rows_of(orjson.loads(answer))
    last = b'{"prompt_logprobs":[null,{"1":{"logprob":-0.5}}]}'
    assert VLLM.loads(last, 2, {1}, own(1)) == orjson.loads(last)
