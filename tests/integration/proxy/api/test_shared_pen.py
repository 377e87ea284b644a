"""Tests the methods whose text both models write."""

import math
from typing import Any, Literal

import pytest

from proxy.api.service import Service
from tests.support.proxy.api import CHAT, MODEL, A, B, answer, chat, error_of, iter_of, service_of
from tests.support.scripted import ScriptedBackend, says, values


async def test_skd_is_asked_for_by_its_parameters_and_tells_what_it_rejected() -> None:
    student = ScriptedBackend(iter_of(says(A, B), says()), written_logprob=math.log(0.5))
    teacher = ScriptedBackend(says("T.\n\n"), values({A: 0.5, B: 0.3}))
    asked = chat(motab={"method": "skd", "gamma": 0.9, "trace": "full"})
    response = await answer(service_of(student, teacher), CHAT, asked)
    assert response.headers["x-motab-scoring"] == "prompt_logprobs"
    (choice,) = response.json()["choices"]
    assert choice["message"]["content"] == A + "T.\n\n"
    assert choice["motab"]["method"] == "skd"
    kept, rejected, rewritten = choice["motab"]["steps"]
    assert (kept["author"], kept["safe"], kept["boundary"]) == (
        "student",
        True,
        pytest.approx(0.45),
    )
    assert (rejected["safe"], rejected["start"], rejected["text"]) == (False, None, B)
    assert (rewritten["author"], rewritten["value"], rewritten["safe"]) == ("teacher", None, None)


@pytest.mark.parametrize(
    ("tells", "fields", "param", "about"),
    [
        ("no", {}, "motab.method", "needs the student's log-probabilities"),
        ("scaled", {"temperature": 0.7}, "temperature", "needs temperature 0 or 1 here"),
    ],
)
async def test_skd_without_the_students_own_probabilities_is_a_400(
    tells: Literal["no", "scaled"], fields: dict[str, Any], param: str, about: str
) -> None:
    service = service_of(student := ScriptedBackend(says("x")))
    found = service.models[MODEL].pair.student
    assert found is not None
    found.writes_logprobs = tells
    status, error = await error_of(service, CHAT, chat(motab={"method": "skd"}, **fields))
    assert (status, error["param"]) == (400, param)
    assert about in error["message"]
    assert not student.writes
    # The other methods do not mind.
    asked = chat(motab={"method": "imitkd", "beta": 0}, **fields)
    assert (await answer(service, CHAT, asked)).status_code == 200


@pytest.mark.parametrize("temperature", [0, 1])
async def test_what_a_server_scaled_is_good_where_that_changes_nothing(temperature: int) -> None:
    service = service_of(ScriptedBackend(says("x"), written_logprob=-1.0))
    found = service.models[MODEL].pair.student
    assert found is not None
    found.writes_logprobs = "scaled"
    asked = chat(motab={"method": "skd"}, temperature=temperature)
    assert (await answer(service, CHAT, asked)).status_code == 200


async def test_skd_compares_no_marks_with_probabilities() -> None:
    teacher = ScriptedBackend(scoring="judge_sample")
    service = service_of(ScriptedBackend(says("x")), teacher)
    asked = chat(motab={"method": "skd", "boundary": "static", "base_threshold": 0.5})
    status, error = await error_of(service, CHAT, asked)
    assert (status, error["param"]) == (400, "motab.method")
    assert "judge_sample" in error["message"]


@pytest.mark.parametrize("method", ["imitkd", "skd", "prefix"])
async def test_a_plain_model_shares_no_pen(method: str) -> None:
    service = service_of(ScriptedBackend(says("x")))
    for model in ("student/s", "teacher/t"):
        status, error = await error_of(service, CHAT, chat(model=model, motab={"method": method}))
        assert (status, error["param"]) == (400, "motab.method")


async def test_a_seed_repeats_what_was_drawn() -> None:
    def service() -> Service:
        return service_of(ScriptedBackend(says("s")), ScriptedBackend(says("t")))

    async def text_of(seed: int) -> str:
        asked = chat(motab={"method": "imitkd"}, seed=seed)
        content: str = (await answer(service(), CHAT, asked)).json()["choices"][0]["message"][
            "content"
        ]
        return content

    first = [await text_of(seed) for seed in range(8)]
    assert [await text_of(seed) for seed in range(8)] == first
    assert set(first) == {"s", "t"}
