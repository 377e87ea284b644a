"""Requests that meet the limits of models, from a configuration to the client's answer."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from proxy.config import Config
from proxy.wiring.models import open_service
from tests.support.proxy.api import CHAT, MOTAB_CHAT, SCORE, error_in, in_process, payloads
from tests.support.proxy.windows import KINDS, MODEL, Windowed, token_upstream, windowed
from tests.support.toy_servers import Kind, Model, toy_server

QUESTION = [{"role": "user", "content": "So the sum is 7"}]
NUM_PROMPT = 10
"""The question's tokens in the toys' tokenizer, about."""
PARAMS = {"base_threshold": 0.2, "entropy_scale": 0.05, "entropy_top_k": 3}
METHODS = ("motab", "skd", "imitkd", "prefix")


class _Long(Model):
    """A model that never ends a text, and begins a new step at every fifth token."""

    def next_id(self, ids: Any, *salt: int) -> int:
        del salt
        step = self.tokens("7 is the.\n\n")
        return step[len(ids) % len(step)]


STUDENT = _Long(["So", " the", " sum", " is", " \u221a2", "7"], salt=1)


@asynccontextmanager
async def served(
    student: Windowed, teacher: Windowed, **teacher_keys: Any
) -> AsyncIterator[httpx.AsyncClient]:
    config = Config.model_validate(
        {
            "upstreams": {
                "s": token_upstream(student),
                "t": token_upstream(teacher, **teacher_keys),
            },
            "models": {"m": {"student": "s", "teacher": "t", "params": PARAMS}},
        }
    )
    async with open_service(config) as service, in_process(service) as client:
        yield client


@asynccontextmanager
async def toys(
    kind: Kind, student: Mapping[str, Any], teacher: Mapping[str, Any], model: Model = STUDENT
) -> AsyncIterator[tuple[Windowed, Windowed]]:
    async with (
        toy_server(kind, model, windowed(**student)) as one,
        toy_server(kind, model, windowed(**teacher)) as other,
    ):
        assert isinstance(one, Windowed)
        assert isinstance(other, Windowed)
        yield one, other


async def asked(client: httpx.AsyncClient, path: str = MOTAB_CHAT, **fields: Any) -> Any:
    body = {"model": "m", "messages": QUESTION, "temperature": 0, **fields}
    response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]


def checked(choice: Any) -> Any:
    """The choice, whose spans cover its text."""
    text, spans = choice["message"]["content"], choice["motab"]["spans"]
    assert "".join(text[span["start"] : span["end"]] for span in spans) == text
    return choice


@pytest.mark.parametrize("kind", KINDS)
async def test_a_default_request_fits_every_model(kind: Kind) -> None:
    async with toys(kind, {"window": 90}, {"window": 90}) as (student, teacher):
        async with served(student, teacher) as client:
            choice: Any = None
            for method in METHODS:
                choice = checked(await asked(client, motab={"method": method}))
                assert choice["finish_reason"] == "length"
                assert choice["motab"]["limited_by"]["tokens"] == 90
            text = choice["message"]["content"][:60]
            for model in ("student/s", "teacher/t"):
                choice = checked(await asked(client, model=model))
                limited_by = {"model": model[:7], "limit": "context_tokens", "tokens": 90}
                assert choice["motab"]["limited_by"] == limited_by
            scored = {"model": "m", "messages": QUESTION, "text": text}
            assert (await client.post(SCORE, json=scored)).status_code == 200
        assert student.refused == teacher.refused == []
        assert max(one.prompt + one.answer for one in student.asked) == 90


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_draft_beyond_the_teachers_window_ends_with_what_was_judged(
    kind: Kind, stream: bool
) -> None:
    async with toys(kind, {"window": 1000}, {"window": 70}) as (student, teacher):
        async with served(student, teacher) as client:
            body = {"model": "m", "messages": QUESTION, "temperature": 0, "stream": stream}
            body["motab"] = {"trace": "full", "base_threshold": 0.0, "max_step_tokens": 20}
            response = await client.post(CHAT, json=body)
        if stream:
            choices = [c["choices"][0] for c in payloads(response)[:-1]]
            text = "".join(choice["delta"].get("content", "") for choice in choices)
            end = choices[-1]
        else:
            (end,) = response.json()["choices"]
            text = end["message"]["content"]
        trace = end["motab"]
        assert end["finish_reason"] == "length"
        limited_by = {"model": "teacher", "limit": "context_tokens", "tokens": 70}
        assert trace["limited_by"] == limited_by
        assert text
        assert all(step["value"] is not None for step in trace["steps"])
        assert trace["steps"][-1]["end"] == len(text)
        # One more step would not have fitted.
        num_step = len(MODEL.tokens("7 is the.\n\n"))
        assert len(MODEL.tokens(text)) + NUM_PROMPT > 70 - 6 - num_step
        assert teacher.refused == []


# Every llama.cpp tells its window.
@pytest.mark.parametrize("kind", ["vllm", "sglang"])
@pytest.mark.parametrize("names", [False, True])
@pytest.mark.parametrize("method", METHODS)
async def test_a_window_that_only_refusals_tell_discards_nothing(
    kind: Kind, names: bool, method: str
) -> None:
    hidden = {"window": 70, "tells": False, "names": names}
    async with (
        toys(kind, {"window": 1000}, hidden) as (student, teacher),
        served(student, teacher) as client,
    ):
        motab = {"method": method, "base_threshold": 0.0, "gamma": 1e-6, "beta": 0.3}
        choice = checked(await asked(client, motab=motab, seed=3))
        assert choice["finish_reason"] == "length"
        assert choice["message"]["content"]
        tokens = 70 if names else None
        limited_by = {"model": "teacher", "limit": "context_tokens", "tokens": tokens}
        assert choice["motab"]["limited_by"] == limited_by
        assert teacher.refused
        if names:  # learned
            teacher.refused.clear()
            await asked(client, motab=motab, seed=3)
            assert teacher.refused == []


@pytest.mark.parametrize("kind", KINDS)
async def test_a_correction_gets_what_is_left_of_the_teachers_window(kind: Kind) -> None:
    async with toys(kind, {"window": 1000}, {"window": 80}) as (student, teacher):
        async with served(student, teacher) as client:
            motab = {"base_threshold": 1.0, "boundary": "static", "max_step_tokens": 20}
            choice = checked(await asked(client, motab=motab))
        assert choice["finish_reason"] == "length"
        assert choice["motab"]["limited_by"]["model"] == "teacher"
        assert [span["role"] for span in choice["motab"]["spans"]] == [
            "flawed",
            "revise",
            "teacher",
        ]
        assert teacher.asked[-1].prompt + teacher.asked[-1].answer == 80
        assert teacher.refused == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", ["student", "teacher"])
async def test_rounds_end_where_one_of_the_windows_is_full(kind: Kind, model: str) -> None:
    sizes = [{"window": 90 if one == model else 1000} for one in ("student", "teacher")]
    async with toys(kind, sizes[0], sizes[1]) as (student, teacher):
        async with served(student, teacher) as client:
            motab = {"base_threshold": 1.0, "boundary": "static", "rounds": 1000, "trace": "full"}
            choice = checked(await asked(client, motab=motab))
        assert student.refused == teacher.refused == []
    trace = choice["motab"]
    assert choice["finish_reason"] == "length"
    assert trace["limited_by"] == {"model": model, "limit": "context_tokens", "tokens": 90}
    assert len(trace["breaches"]) > 2
    # One more step would not have fitted, or one of each model's.
    kept = [s for s in trace["spans"] if s["role"] in {"student", "teacher"}]
    text = choice["message"]["content"]
    path = "".join(text[span["start"] : span["end"]] for span in kept)
    num_step = len(MODEL.tokens("7 is the.\n\n"))
    assert len(MODEL.tokens(path)) + NUM_PROMPT > 90 - 6 - 2 * num_step


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tells", [False, True])
@pytest.mark.parametrize(("student", "teacher"), [(8, 1000), (1000, 8)])
async def test_a_question_that_fits_no_window_is_the_clients(
    kind: Kind, tells: bool, student: int, teacher: int
) -> None:
    sizes = ({"window": student, "tells": tells}, {"window": teacher, "tells": tells})
    async with toys(kind, *sizes) as both, served(*both) as client:
        body = {"model": "m", "messages": QUESTION, "motab": {"max_total_tokens": 50}}
        response = await client.post(CHAT, json=body)
    error = error_in(response)
    assert (response.status_code, error["code"]) == (400, "context_length_exceeded")


@pytest.mark.parametrize("kind", KINDS)
async def test_a_given_text_that_fits_no_window_is_the_clients(kind: Kind) -> None:
    async with toys(kind, {"window": 1000}, {"window": 40}) as both, served(*both) as client:
        body = {"model": "m", "messages": QUESTION, "text": "7 is the.\n\n" * 20}
        for fields in ({}, {"token_logprobs": True}):
            response = await client.post(SCORE, json={**body, **fields})
            error = error_in(response)
            assert (response.status_code, error["code"]) == (400, "context_length_exceeded")
            assert "upstream 't': question and text have" in error["message"]
        assert both[1].refused == []


async def test_the_lower_of_the_configured_and_the_told_window_holds() -> None:
    async with toys("vllm", {"window": 90}, {"window": 90}) as both:
        for configured, tokens in ((50, 50), (500, 90)):
            async with served(*both, context_tokens=configured) as client:
                choice = await asked(client, model="teacher/t")
                assert choice["motab"]["limited_by"]["tokens"] == tokens
        async with served(*both, max_output_tokens=5) as client:
            choice = await asked(client, model="teacher/t")
            limited_by = {"model": "teacher", "limit": "max_output_tokens", "tokens": 5}
            assert choice["motab"]["limited_by"] == limited_by


async def test_a_text_that_ends_by_itself_names_no_limit() -> None:
    async with (
        toys("vllm", {"window": 900}, {"window": 900}, MODEL) as both,
        served(*both) as client,
    ):
        choice = await asked(client, motab={"base_threshold": 0.0})
        assert choice["finish_reason"] == "stop"
        assert "limited_by" not in choice["motab"]
        choice = await asked(client, max_tokens=3)
        assert choice["finish_reason"] == "length"
        assert "limited_by" not in choice["motab"]
