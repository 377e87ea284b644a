"""Tests what a scorer of a user's own is asked, and that no wrong answer becomes a value."""

from typing import Any

import orjson
import pytest

from proxy.backends.base import Call, Context, Message, Question, Sampling, Scores, Segment
from proxy.backends.judges.http_scorer import HttpScorer
from proxy.core.thinking import Reasoning
from proxy.core.types import StepScore
from proxy.engine.pair import Pair
from proxy.engine.upstream import Upstream
from proxy.errors import (
    ContextExceeded,
    UpstreamDenied,
    UpstreamFailed,
    UpstreamGarbled,
    UpstreamMalformed,
    UpstreamRefused,
)
from tests.support.replay import Replay, json_reply
from tests.support.scripted import ScriptedBackend, upstream

PATH = "/score_steps"
STEPS = ["A a.\n\n", " B\u00e9.\n\n", "\U0001f389"]
QUESTION = Question((Message("system", "Be brief."), Message("user", "Q")))
CALL = Call("r-0")


async def scored(up: Replay, num_new: int = 2, question: Question = QUESTION) -> Scores:
    context = Context(Segment("", ()), [Segment(text, ()) for text in STEPS], question=question)
    scorer = HttpScorer(up.client)
    return await scorer.score(context, num_new, 20, CALL, entropy_known=False)


async def test_a_scorer_is_asked_for_the_new_steps_and_sees_all_of_them(up: Replay) -> None:
    up.on("POST", PATH, json_reply({"values": [0, 0.25]}))
    found = await scored(up)
    assert found == Scores((StepScore(0.0, None, 0), StepScore(0.25, None, 0)), None, 0, 0)
    (seen,) = up.seen
    assert seen.body == {
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Q"}],
        "steps": STEPS,
        "num_new": 2,
    }
    assert seen.headers["x-session-id"] == "r-0"
    assert [(path, code) for _, path, _, code in up.observed] == [(PATH, "ok")]


async def test_a_raw_prompt_is_sent_as_it_is(up: Replay) -> None:
    up.on("POST", PATH, json_reply({"values": [1]}))
    await scored(up, 1, Question(prompt="<user>Q"))
    assert up.seen[0].body == {"prompt": "<user>Q", "steps": STEPS, "num_new": 1}


LIST = "an object whose 'values' is a list must come, not "
NUMBER = "must be a number in [0, 1], not "


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        ("[0.5, 0.5]", LIST + "[0.5, 0.5]"),
        ("0.5", LIST + "0.5"),
        ("null", LIST + "null"),
        ("{}", LIST + "{}"),
        ('{"value": [0.5, 0.5]}', LIST + '{"value": [0.5, 0.5]}'),
        ('{"values": null}', LIST + '{"values": null}'),
        ('{"values": 0.5}', LIST + '{"values": 0.5}'),
        ('{"values": "0.5 0.5"}', LIST + '{"values": "0.5 0.5"}'),
        ('{"values": {"0": 0.5, "1": 0.5}}', LIST + '{"values": {"0": 0.5, "1": 0.5}}'),
        ('{"values": []}', "'values' must have 2, one a new step, not 0"),
        ('{"values": [0.5]}', "'values' must have 2, one a new step, not 1"),
        ('{"values": [0.5, 0.5, 0.5]}', "'values' must have 2, one a new step, not 3"),
        ('{"values": [0.5, NaN]}', f"values[1] {NUMBER}NaN"),
        ('{"values": [Infinity, 0.5]}', f"values[0] {NUMBER}Infinity"),
        ('{"values": [-Infinity, 0.5]}', f"values[0] {NUMBER}-Infinity"),
        ('{"values": [0.5, 1e400]}', f"values[1] {NUMBER}Infinity"),
        ('{"values": [1.0000001, 0.5]}', f"values[0] {NUMBER}1.0000001"),
        ('{"values": [-1e-9, 0.5]}', f"values[0] {NUMBER}-1e-09"),
        ('{"values": [0.5, 2]}', f"values[1] {NUMBER}2"),
        ('{"values": [true, 0.5]}', f"values[0] {NUMBER}true"),
        ('{"values": [0.5, false]}', f"values[1] {NUMBER}false"),
        ('{"values": ["0.5", 0.5]}', f'values[0] {NUMBER}"0.5"'),
        ('{"values": [0.5, null]}', f"values[1] {NUMBER}null"),
        ('{"values": [[0.5], [0.5]]}', f"values[0] {NUMBER}[0.5]"),
        ('{"values": [0.5, {"value": 0.5}]}', f'values[1] {NUMBER}{{"value": 0.5}}'),
    ],
)
async def test_a_wrong_answer_names_the_scorer_and_the_fault(
    up: Replay, answer: str, fault: str
) -> None:
    up.on("POST", PATH, json_reply(answer.encode()))
    with pytest.raises(UpstreamMalformed) as caught:
        await scored(up)
    assert str(caught.value) == f"upstream 'up': {PATH} is not what was asked for: {fault}"
    assert not caught.value.retryable


@pytest.mark.parametrize("answer", [b"", b"0.5 0.5", b"<html>", b'{"values": [0.5, 0.5]', b"[" * 9])
async def test_what_is_no_json_is_no_answer(up: Replay, answer: bytes) -> None:
    up.on("POST", PATH, json_reply(answer))
    with pytest.raises(UpstreamGarbled, match="did not answer in JSON"):
        await scored(up)


async def test_a_value_far_too_long_is_shown_in_part(up: Replay) -> None:
    up.on("POST", PATH, json_reply({"values": ["x" * 10_000, 0.5]}))
    with pytest.raises(UpstreamMalformed) as caught:
        await scored(up)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("status", "words", "error"),
    [
        (500, "out of memory", UpstreamFailed),
        (429, "busy", UpstreamFailed),
        (401, "no key", UpstreamDenied),
        (404, "no such path", UpstreamRefused),
        (400, "the input is too long for the context window", ContextExceeded),
    ],
)
async def test_a_refusal_is_sorted_as_every_upstreams(
    up: Replay, status: int, words: str, error: type[Exception]
) -> None:
    up.on("POST", PATH, json_reply({"error": words}, status))
    with pytest.raises(error, match=words):
        await scored(up)


async def test_a_check_asks_for_no_value(up: Replay) -> None:
    up.on("POST", PATH, json_reply({"values": []}))
    await HttpScorer(up.client).check()
    assert (up.seen[0].body["steps"], up.seen[0].body["num_new"]) == ([], 0)


@pytest.mark.parametrize("answer", [{"values": [0.5]}, {"detail": "no steps"}, []])
async def test_a_check_that_brings_anything_fails(up: Replay, answer: Any) -> None:
    up.on("POST", PATH, json_reply(orjson.dumps(answer)))
    with pytest.raises(UpstreamMalformed):
        await HttpScorer(up.client).check()


async def test_a_scorer_reads_the_students_thoughts_as_they_were_written(up: Replay) -> None:
    up.on("POST", PATH, json_reply({"values": [1, 1]}))
    student = upstream("student", ScriptedBackend(), Reasoning("think"))
    teacher = upstream("teacher", ScriptedBackend(), Reasoning("harmony"))
    scorer = HttpScorer(up.client)
    own = Upstream("scoring/pair", scorer, scorer, (scorer,), 1)
    pair = Pair(student, teacher, scorer=own)
    steps = ["<think>\nA.\n\n", "B.\n</think>\n\n", "C."]
    mapped = await pair.context("teacher", QUESTION, CALL).at(steps)
    assert "".join(mapped.texts) != "".join(steps)
    context = await pair.context("scorer", QUESTION, CALL).at(steps)
    await scorer.score(context, 2, 20, CALL, entropy_known=False)
    assert up.seen[0].body["steps"] == steps


async def test_a_scorer_refuses_to_write(up: Replay) -> None:
    scorer, context = HttpScorer(up.client), Context(Segment("", ()))
    with pytest.raises(UpstreamRefused, match="a scorer writes nothing"):
        scorer.write(context, Sampling(), 1, CALL)
    with pytest.raises(UpstreamRefused, match="a scorer writes nothing"):
        await scorer.decode(context, 1, CALL)
    assert not up.seen
