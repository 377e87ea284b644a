"""Tests the scoring of given texts, and teachers that judge."""

import math
from dataclasses import replace
from typing import Any

import pytest

from proxy.api.service import Service
from proxy.backends.base import Scores
from proxy.backends.limits import ModelLimits
from proxy.core.types import StepScore
from proxy.errors import UpstreamFailed
from tests.support.proxy.api import (
    CHAT,
    MODEL,
    MOTAB_CHAT,
    SCORE,
    STITCHED,
    A,
    B,
    C,
    answer,
    chat,
    error_of,
    in_process,
    iter_of,
    over_http,
    payloads,
    samples_of,
    service_of,
    straying,
    streamed_text,
    text,
)
from tests.support.scripted import Script, ScriptedBackend, says, values


@pytest.mark.parametrize("question", [text(), chat()], ids=["prompt", "messages"])
async def test_a_given_text_is_scored_step_by_step_in_one_call(question: dict[str, Any]) -> None:
    student, teacher = straying()
    body = {**question, "text": A + B + "tail", "motab": {"base_threshold": 0.1}}
    found = (await answer(service_of(student, teacher), SCORE, body)).json()
    assert found["object"] == "motab.score"
    assert found["model"] == MODEL
    assert (found["breach"], found["bifurcation"]) == (1, 1)
    assert [step["value"] for step in found["steps"]] == [0.9, 0.05, 0.9]
    assert [step["boundary"] for step in found["steps"]] == [0.1] * 3
    assert [step["safe"] for step in found["steps"]] == [True, False, True]
    assert [(step["start"], step["end"]) for step in found["steps"]] == [(0, 6), (6, 12), (12, 16)]
    assert found["params"]["base_threshold"] == 0.1
    prompt = "Q" if "prompt" in question else "<user>Q<answer>"
    (scoring,) = teacher.scorings
    assert scoring.context == prompt + A + B + "tail"
    assert scoring.num_new == 3
    assert found["usage"]["prompt_tokens"] == len(prompt)
    assert found["usage"]["motab"] == {
        "teacher_scored_tokens": 16,
        "teacher_cached_tokens": 0,
        "score_calls": 1,
    }
    assert not student.rendered


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"text": ""}, "text"),
        ({"text": "x", "prompt": ""}, "prompt"),
        ({"text": "x", "messages": [{"role": "user", "content": "Q"}]}, "messages"),
        ({"text": "x", "model": "student/s"}, "model"),
        ({"text": "x", "temperature": 1}, "temperature"),
        ({}, "text"),
    ],
    ids=["empty", "no prompt", "both", "no teacher", "sampling", "missing"],
)
async def test_a_text_that_cannot_be_scored_is_a_400(fields: dict[str, Any], param: str) -> None:
    status, error = await error_of(service_of(ScriptedBackend()), SCORE, {**text(), **fields})
    assert (status, error["param"]) == (400, param)


async def test_a_teacher_alone_can_score() -> None:
    body = {**text(model="teacher/t"), "text": "x"}
    response = await answer(service_of(ScriptedBackend()), SCORE, body)
    assert response.status_code == 200


@pytest.mark.parametrize("fault", ["too few", "no entropy", "down"])
async def test_a_teacher_that_fails_to_score_is_a_502(fault: str) -> None:
    def too_few(scores: Scores) -> Scores:
        return Scores(scores.steps[:-1], None, scores.num_tokens, 0)

    def no_entropy(scores: Scores) -> Scores:
        nothing = values({})("", "")
        steps = [type(nothing)(s.value, None, s.num_tokens) for s in scores.steps]
        return Scores(tuple(steps), None, scores.num_tokens, 0)

    teacher = {
        "too few": ScriptedBackend(distort=too_few),
        "no entropy": ScriptedBackend(distort=no_entropy),
        "down": ScriptedBackend(faults={("score", 0): UpstreamFailed("teacher", "down")}),
    }[fault]
    body = {**text(), "text": A + B}
    status, error = await error_of(service_of(ScriptedBackend(), teacher), SCORE, body)
    assert (status, error["type"]) == (502, "upstream_error")


@pytest.mark.parametrize("path", [SCORE, CHAT], ids=str)
@pytest.mark.parametrize(
    ("own", "boundaries", "breach"),
    [([0.9, 0.02], [0.9, 0.02, 0.02, 0.02], None), ([0.9, 0.9, 0.95], [0.9, 0.9, 0.95], 2)],
    ids=["the last holds on", "a breach"],
)
async def test_each_step_is_held_against_a_boundary_of_its_own(
    path: str, own: list[float], boundaries: list[float], breach: int | None
) -> None:
    student, (_, teacher) = ScriptedBackend(says((A, A, A, B))), straying()
    teacher.distort = lambda scores: replace(  # no entropy is needed
        scores, steps=tuple(replace(step, entropy=None) for step in scores.steps)
    )
    options = {"boundary": "quantile", "boundary_values": own}
    if path == SCORE:
        body = chat() | {"text": A + A + A + B, "motab": options}
        found = (await answer(service_of(student, teacher), path, body)).json()
    else:
        body = chat() | {"motab": {**options, "trace": "full"}}
        found = (await answer(service_of(student, teacher), path, body)).json()
        found = found["choices"][0]["motab"]
    assert [step["boundary"] for step in found["steps"]][: len(boundaries)] == boundaries
    assert found["breach"] == breach
    assert {name: found["params"][name] for name in options} == options


@pytest.mark.parametrize("path", [SCORE, CHAT], ids=str)
@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"boundary": "quantile"}, "boundary_values"),
        ({"boundary": "quantile", "boundary_values": []}, "boundary_values"),
        ({"boundary": "quantile", "boundary_values": [0.1] * 65}, "boundary_values"),
        ({"boundary": "quantile", "boundary_values": [True]}, "boundary_values.0"),
        ({"boundary": "quantile", "boundary_values": [0.1, 2]}, "boundary_values"),
        ({"boundary": "static", "boundary_values": [0.1]}, "boundary_values"),
        ({"boundary_values": [0.1]}, "boundary_values"),
    ],
    ids=str,
)
async def test_boundary_values_that_make_no_sense_are_a_400(
    path: str, asked: dict[str, Any], field: str
) -> None:
    body = {**text(), "text": A} if path == SCORE else chat()
    status, error = await error_of(service_of(*straying()), path, {**body, "motab": asked})
    assert (status, error["param"]) == (400, f"motab.{field}")


async def test_a_request_may_leave_the_boundary_by_step_of_its_model() -> None:
    service = service_of(*straying(), {"boundary": "quantile", "boundary_values": [0.01]})
    for asked, breach in (({}, None), ({"boundary": "static"}, 1)):
        body = chat(motab={**asked, "trace": "full"})
        found = (await answer(service, CHAT, body)).json()["choices"][0]["motab"]
        assert found["breach"] == breach
        assert ("boundary_values" in found["params"]) == (breach is None)


STATIC = {"boundary": "static", "base_threshold": 0.5}


def judged(defaults: dict[str, Any] | None = None) -> Service:
    """The straying student, before a teacher that can only be asked for marks."""
    student, teacher = straying()
    teacher.scoring = "judge_sample"
    marks = {A: 0.9, B: 0.05}
    teacher.judge = lambda _context, step: StepScore(marks.get(step, 0.9), None, len(step))
    return service_of(student, teacher, defaults)


async def test_a_judges_trajectory_tells_in_header_trace_and_metric_how_it_was_scored() -> None:
    service = judged(STATIC)
    async with in_process(service) as client:
        response = await client.post(MOTAB_CHAT, json=chat())
        samples = await samples_of(client)
    assert response.headers["x-motab-scoring"] == "judge_sample"
    (choice,) = response.json()["choices"]
    assert choice["message"]["content"] == STITCHED
    assert choice["motab"]["scoring"] == "judge_sample"
    assert [step["entropy"] for step in choice["motab"]["steps"]] == [None, None]
    assert [step["boundary"] for step in choice["motab"]["steps"]] == [0.5, 0.5]
    assert samples["motab_score_calls_total", MODEL, "judge_sample"] == 1


async def test_steps_that_a_cache_could_not_serve_are_named_in_trace_and_metric() -> None:
    student, teacher = straying()
    teacher.scoring = "cached_logprobs"
    teacher.distort = lambda scores: replace(scores, scoring="prompt_logprobs")
    async with in_process(service_of(student, teacher)) as client:
        response = await client.post(MOTAB_CHAT, json=chat())
        samples = await samples_of(client)
    (choice,) = response.json()["choices"]
    assert response.headers["x-motab-scoring"] == "cached_logprobs"
    assert choice["motab"]["scoring"] == "cached_logprobs"
    assert choice["motab"]["scoring_fallbacks"] == {"prompt_logprobs": [0, 1]}
    assert samples["motab_scoring_fallbacks_total", MODEL, "prompt_logprobs"] == 2


@pytest.mark.parametrize(
    ("motab", "table", "marked"),
    [
        # The steps after the breach, which the same call scored, are none of the trajectory's.
        ({}, {A: 0.05}, [0]),
        # The index counts the steps that were rejected and written again.
        ({"method": "skd"}, {A: 0.05}, [0, 2]),
        ({"rounds": 2}, {A: 0.05}, [0, 1]),
        ({"rounds": 2, "stitch": "clean"}, {B: 0.05}, [0, 1, 2]),
    ],
)
async def test_the_steps_that_a_cache_could_not_serve_are_named_by_their_place_in_the_trace(
    motab: dict[str, Any], table: dict[str, float], marked: list[int]
) -> None:
    student = ScriptedBackend(iter_of(says((A, B)), says((C,))), written_logprob=math.log(0.5))
    teacher = ScriptedBackend(iter_of(says("T.\n\n"), says("U.")), values(table, otherwise=0.9))
    teacher.scoring = "cached_logprobs"
    teacher.distort = lambda scores: replace(scores, scoring="prompt_logprobs")
    asked = chat(motab={"base_threshold": 0.1, "trace": "full", **motab})
    (choice,) = (await answer(service_of(student, teacher), CHAT, asked)).json()["choices"]
    assert choice["motab"]["scoring_fallbacks"] == {"prompt_logprobs": marked}
    steps = choice["motab"]["steps"]
    assert [index for index, step in enumerate(steps) if step["value"] is not None] == marked


async def test_a_judges_stream_tells_it_too() -> None:
    response = await answer(judged(STATIC), CHAT, chat(stream=True))
    assert response.headers["x-motab-scoring"] == "judge_sample"
    chunks = payloads(response)
    assert streamed_text(chunks) == STITCHED
    told = [chunk["choices"][0]["motab"] for chunk in chunks[:-1] if "motab" in chunk["choices"][0]]
    assert [trace["scoring"] for trace in told] == ["judge_sample"]


async def test_what_is_not_scored_tells_no_way_of_scoring() -> None:
    body = chat(motab={"method": "student"})
    response = await answer(judged(), CHAT, body)
    assert response.status_code == 200
    assert "x-motab-scoring" not in response.headers


@pytest.mark.parametrize("path", [CHAT, SCORE])
@pytest.mark.parametrize(
    ("defaults", "asked", "param"),
    [
        ({}, {"base_threshold": 0.5}, "motab.boundary"),
        ({}, {"boundary": "static"}, "motab.base_threshold"),
        (STATIC, {"boundary": "adaptive"}, "motab.boundary"),
        ({}, {"boundary": "quantile", "boundary_values": [0.5]}, "motab.boundary"),
        (STATIC, {"scoring": "prompt_logprobs"}, "motab.scoring"),
        (STATIC, {"scoring": "judge_logprob"}, "motab.scoring"),
    ],
    ids=[
        "adaptive by default",
        "no threshold",
        "adaptive",
        "of probabilities",
        "no log-probs",
        "no judge of that kind",
    ],
)
async def test_a_judge_is_never_held_against_a_boundary_made_for_probabilities(
    path: str, defaults: dict[str, Any], asked: dict[str, Any], param: str
) -> None:
    body = {**text(), "text": A} if path == SCORE else chat()
    status, error = await error_of(judged(defaults), path, {**body, "motab": asked})
    assert (status, error["param"]) == (400, param)


async def test_the_thresholds_of_model_and_request_go_together() -> None:
    for defaults, asked in ((STATIC, {}), ({}, STATIC), ({"boundary": "static"}, STATIC)):
        response = await answer(judged(defaults), CHAT, chat(motab=asked))
        assert response.status_code == 200


async def test_a_given_text_is_marked_and_the_answer_says_so() -> None:
    body = {**text(), "text": A + B, "motab": {**STATIC, "scoring": "judge_sample"}}
    found = (await answer(judged(), SCORE, body)).json()
    assert found["scoring"] == "judge_sample"
    assert [step["value"] for step in found["steps"]] == [0.9, 0.05]
    assert [step["entropy"] for step in found["steps"]] == [None, None]
    assert found["breach"] == 1


async def test_token_logprobs_need_two_servers_that_tell_them() -> None:
    async with over_http(service_of(ScriptedBackend())) as client:
        body = {"model": MODEL, "prompt": "Q", "text": A, "token_logprobs": True}
        answer = await client.post(SCORE, json=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["code"] == "scoring_unavailable"
    assert "upstream 'student' cannot give token_logprobs" in error["message"]
    assert "it has: prompt_logprobs" in error["message"]


async def test_a_text_of_too_many_steps_or_characters_is_refused_before_it_is_tokenised() -> None:
    student, teacher = straying()
    service = service_of(student, teacher)
    for given, about in (
        (".\n\n" * 8193, "text has 8193 steps, and at most 8192 are scored in a request"),
        ("x" * 1_000_001, "text: string should have at most 1000000 characters"),
    ):
        status, error = await error_of(service, SCORE, {**text(), "text": given})
        assert (status, error["message"], error["param"]) == (400, about, "text")
    assert not teacher.rendered
    most = (await answer(service, SCORE, {**text(), "text": "a.\n\n" * 8192})).json()
    assert len(most["steps"]) == 8192


@pytest.mark.parametrize(
    ("path", "method"), [(SCORE, "motab"), (CHAT, "motab"), (CHAT, "skd")], ids=str
)
async def test_more_candidates_than_the_teacher_has_tokens_are_a_400(
    path: str, method: str
) -> None:
    student, teacher = straying()
    service = service_of(student, teacher)
    service.models[MODEL].pair.of("teacher").limits = ModelLimits(vocabulary=394)
    asked = chat() | ({"text": A} if path == SCORE else {})
    options: dict[str, Any] = {} if path == SCORE else {"method": method}
    body = asked | {"motab": {"entropy_top_k": 395, **options}}
    status, error = await error_of(service, path, body)
    assert (status, error["param"]) == (400, "motab.entropy_top_k")
    assert "at most 394, the number of tokens of upstream 'teacher', not 395" in error["message"]
    assert teacher.scorings == []
    most = asked | {"motab": {"entropy_top_k": 394, **options}}
    assert (await answer(service, path, most)).status_code == 200


async def test_a_judge_needs_no_candidates_of_its_vocabulary() -> None:
    service = judged({"boundary": "static", "base_threshold": 0.3})
    service.models[MODEL].pair.of("teacher").limits = ModelLimits(vocabulary=10)
    assert (await answer(service, CHAT, chat())).status_code == 200


@pytest.mark.parametrize(
    ("keep_code", "ends"), [(True, [3, 14, 17]), (False, [3, 7, 10, 14, 17])], ids=str
)
@pytest.mark.parametrize("path", [SCORE, CHAT], ids=str)
async def test_several_delimiters_end_steps_in_given_and_in_written_texts(
    path: str, keep_code: bool, ends: list[int]
) -> None:
    written = "a;\n```\nb;\n```\nc. "
    delimiter = {"any": ["\n", ". "], "keep_code": keep_code}
    student = ScriptedBackend(Script(tuple(written)))
    service = service_of(student, ScriptedBackend())
    options: dict[str, Any] = {"delimiter": delimiter}
    if path == CHAT:
        found = (
            await answer(service, path, chat() | {"motab": options | {"trace": "full"}})
        ).json()
        found = found["choices"][0]["motab"]
    else:
        found = (await answer(service, path, chat() | {"text": written, "motab": options})).json()
    assert [step["end"] for step in found["steps"]] == ends
    assert found["params"]["delimiter"] == delimiter
