"""Tests requests in which the student takes the pen back after a correction."""

import json
from typing import Any

import pytest

from tests.support.proxy.api import (
    CHAT,
    MODEL,
    SCORE,
    TEXT,
    A,
    B,
    C,
    answer,
    chat,
    chunks_of,
    error_of,
    in_process,
    iter_of,
    over_http,
    samples_of,
    service_of,
    spans_of,
    straying,
    streamed_text,
    text,
)
from tests.support.scripted import ScriptedBackend, says, values

D, E = "D d.\n\n", "E e.\n\n"
WHOLE = f"{A}{B}However,\n\n{C}{D}{E}However,\n\nRight."
SPANS = [
    ("student", A),
    ("flawed", B),
    ("revise", "However,\n\n"),
    ("teacher", C),
    ("student", D),
    ("flawed", E),
    ("revise", "However,\n\n"),
    ("teacher", "Right."),
]
TWICE = {"rounds": 2, "base_threshold": 0.1, "trace": "full"}


def straying_twice() -> tuple[ScriptedBackend, ScriptedBackend]:
    """A student that strays at its second step, and again after the correction."""
    student = ScriptedBackend(iter_of(says(A, B, "tail"), says((D, E, "tail"))))
    teacher = ScriptedBackend(iter_of(says(C, "more"), says("Right", ".")), values({B: 0, E: 0.05}))
    return student, teacher


@pytest.mark.parametrize("streams", [False, True])
async def test_two_breaches_are_in_the_text_the_spans_the_trace_and_the_usage(
    streams: bool,
) -> None:
    student, teacher = straying_twice()
    service = service_of(student, teacher)
    asked = chat(motab=TWICE, seed=5, stream_options={"include_usage": True} if streams else None)
    if streams:
        chunks = await chunks_of(service, CHAT, asked)
        assert chunks.pop() == "[DONE]"
        usage = chunks.pop()["usage"]
        choice = chunks[-1]["choices"][0]
        whole = streamed_text(chunks)
    else:
        body = (await answer(service, CHAT, asked)).json()
        (choice,), usage = body["choices"], body["usage"]
        whole = choice["message"]["content"]
    assert whole == WHOLE
    assert spans_of(choice, whole) == SPANS
    trace = choice["motab"]
    assert (trace["breach"], trace["bifurcation"], trace["quality"]) == (1, 1, [])
    assert trace["breaches"] == [
        {"breach": 1, "bifurcation": 1},
        {"breach": 3, "bifurcation": 3},
    ]
    assert [whole[s["start"] : s["end"]] for s in trace["steps"]] == [A, B, D, E]
    assert [s["td_error"] is None for s in trace["steps"]] == [True, False, True, False]
    assert (trace["params"]["rounds"], trace["params"]["correction_steps"]) == (2, 1)
    # All texts begin with the clean path, and each has a seed of its own.
    assert [one.steps for one in student.writes] == [[], [A, C]]
    assert [one.steps for one in teacher.writes] == [[A], [A, C, D]]
    assert [one.steps for one in teacher.scorings][-1][:3] == [A, C, D]
    seeds = [one.sampling.seed for one in (*student.writes, *teacher.writes)]
    assert seeds[0] == seeds[2] == 5
    assert seeds[1] == seeds[3] != 5
    assert [one.max_tokens for one in (student.writes[1], teacher.writes[1])] == [
        32768 - 2,
        32768 - 3,
    ]
    spent = usage["motab"]
    assert (spent["student_calls"], spent["correction_calls"]) == (2, 2)
    written = sum(len(one.pieces) for one in teacher.writes)
    assert (spent["teacher_tokens"], spent["teacher_tokens_discarded"]) == (written, written - 3)
    assert spent["student_tokens"] - spent["student_tokens_discarded"] == 4
    # Both revise tokens are counted, each in its own tokens: a character is one.
    assert usage["completion_tokens"] == 4 + 3 + 2 * len("However,\n\n")


async def test_events_count_over_the_whole_trajectory() -> None:
    service = service_of(*straying_twice())
    async with over_http(service) as client:
        asked = chat(motab={**TWICE, "events": True}, stream=True)
        response = await client.post(CHAT, json=asked)
    found: list[tuple[str, Any]] = []
    for event in response.text.split("\n\n"):
        if event.startswith("event: "):
            name, data = event.removeprefix("event: ").split("\ndata: ")
            found.append((name, json.loads(data)))
    assert [data["step"] for name, data in found if name == "motab.step"] == [0, 1, 2, 3]
    assert [data for name, data in found if name == "motab.breach"] == [
        {"index": 0, "breach": 1, "bifurcation": 1},
        {"index": 0, "breach": 3, "bifurcation": 3},
    ]


async def test_a_metric_counts_the_calls_of_all_rounds() -> None:
    async with in_process(service_of(*straying_twice())) as client:
        await client.post(CHAT, json=chat(motab=TWICE))
        samples = await samples_of(client)
    assert samples["motab_trajectories_total", "motab", MODEL, "breach"] == 1
    assert samples["motab_calls_total", "correction", MODEL] == 2


@pytest.mark.parametrize("trace", ["none", "summary", "full"])
async def test_one_round_is_the_answer_without_the_option(trace: str) -> None:
    for path, body in ((CHAT, chat), (TEXT, text)):
        found = []
        for options in ({}, {"rounds": 1}, {"rounds": 1, "correction_steps": 3}):
            service = service_of(*straying())
            asked = body(motab={"trace": trace, **options})
            answered = (await answer(service, path, asked)).json()
            streamed = [
                {**chunk, "id": None, "created": None}
                for chunk in await chunks_of(service_of(*straying()), path, asked)
                if chunk != "[DONE]"
            ]
            found.append([{**answered, "id": None, "created": None}, streamed])
        assert found[0] == found[1] == found[2]
        assert "rounds" not in json.dumps(found)


@pytest.mark.parametrize(
    ("motab", "param", "message"),
    [
        ({"rounds": 0}, "motab.rounds", "rounds must be at least 1, not 0"),
        (
            {"rounds": 2, "method": "imitkd"},
            "motab.rounds",
            "rounds must be 1 with method 'imitkd', not 2",
        ),
        (
            {"correction_steps": 2, "method": "teacher"},
            "motab.correction_steps",
            "correction_steps must be 1 with method 'teacher', not 2",
        ),
    ],
)
async def test_rounds_that_cannot_be_are_refused_by_name(
    motab: dict[str, Any], param: str, message: str
) -> None:
    status, error = await error_of(service_of(*straying()), CHAT, chat(motab=motab))
    assert (status, error["param"], error["message"]) == (400, param, message)


async def test_a_given_text_has_no_rounds() -> None:
    asked = {**chat(motab={"rounds": 2}), "text": A}
    status, error = await error_of(service_of(*straying()), SCORE, asked)
    assert (status, error["param"]) == (400, "motab.rounds")


async def test_a_models_rounds_do_not_hold_for_another_method() -> None:
    service = service_of(*straying_twice(), defaults=TWICE)
    assert (await answer(service, CHAT, chat())).json()["choices"][0]["message"]["content"] == WHOLE
    service = service_of(*straying_twice(), defaults=TWICE)
    answered = await answer(service, CHAT, chat(motab={"method": "student"}))
    assert answered.json()["choices"][0]["message"]["content"] == A + B + "tail"
