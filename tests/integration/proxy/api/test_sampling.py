"""Tests whose text a request's sampling values and template variables reach."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest

from proxy.api.service import Service
from proxy.backends.base import Sampling
from proxy.core.thinking import Reasoning
from proxy.engine.served_model import ServedModel
from tests.support.proxy.api import (
    CHAT,
    MODEL,
    MOTAB_CHAT,
    SCORE,
    TEXT,
    answer,
    chat,
    error_of,
    service_of,
    straying,
    text,
)
from tests.support.scripted import ScriptedBackend, says

FURTHER: dict[str, Any] = {
    "top_k": 20,
    "min_p": 0.05,
    "presence_penalty": 0.5,
    "frequency_penalty": -0.5,
    "repetition_penalty": 1.1,
}


async def sampled(service: Service, backend: ScriptedBackend, body: dict[str, Any]) -> Sampling:
    """The sampling of the backend's only write."""
    response = await answer(service, CHAT if "messages" in body else TEXT, body)
    assert response.status_code == 200, response.text
    (writing,) = backend.writes
    return writing.sampling


async def test_each_author_gets_its_own_values_and_no_other() -> None:
    student, teacher = straying()
    own = {"temperature": 0.1, "top_p": 0.9, "top_k": 3}
    body = chat(temperature=0.3, **FURTHER, motab={"teacher": own})
    await answer(service_of(student, teacher), CHAT, body)
    assert student.writes[0].sampling == Sampling(0.3, **FURTHER)
    assert teacher.writes[0].sampling == Sampling(0.1, 0.9, top_k=3)


ALONE: list[tuple[dict[str, Any], Sampling]] = [
    ({}, Sampling(0.6)),
    ({"temperature": 0.0, "top_p": 0.5, "seed": 1}, Sampling(0.0, 0.5, 1)),
    ({"temperature": 1.0}, Sampling(1.0)),
    (FURTHER, Sampling(0.6, **FURTHER)),
    ({"temperature": 0.3, "motab": {"teacher": {"top_p": 0.9}}}, Sampling(0.3, 0.9)),
    ({"temperature": 0.3, "motab": {"teacher_temperature": 0.2}}, Sampling(0.2)),
    ({"top_p": 0.3, "motab": {"teacher": {"top_p": 0.9}}}, Sampling(0.6, 0.9)),
]


@pytest.mark.parametrize(("fields", "expected"), ALONE, ids=str)
@pytest.mark.parametrize("prompt", [chat(), text()], ids=["messages", "prompt"])
async def test_a_plain_teacher_obeys_the_top_level(
    fields: dict[str, Any], expected: Sampling, prompt: dict[str, Any]
) -> None:
    teacher = ScriptedBackend(says("y"))
    body = {**prompt, **fields, "model": "teacher/t"}
    assert await sampled(service_of(ScriptedBackend(), teacher), teacher, body) == expected


@pytest.mark.parametrize(("fields", "expected"), ALONE, ids=str)
async def test_method_teacher_obeys_the_top_level(
    fields: dict[str, Any], expected: Sampling
) -> None:
    teacher = ScriptedBackend(says("y"))
    body = chat(**fields | {"motab": {"method": "teacher", **fields.get("motab", {})}})
    assert await sampled(service_of(ScriptedBackend(), teacher), teacher, body) == expected


async def test_a_request_s_top_level_beats_the_teacher_s_default_of_the_model() -> None:
    teacher = ScriptedBackend(says("y"))
    defaults = {"method": "teacher", "teacher_temperature": 0.4, "teacher": {"top_k": 7}}
    service = service_of(ScriptedBackend(), teacher, defaults)
    assert await sampled(service, teacher, chat(temperature=0.9)) == Sampling(0.9, top_k=7)


def with_defaults(service: Service, sampling: Mapping[str, Any]) -> Service:
    served = replace(service.models[MODEL], sampling=sampling)
    return replace_models(service, {**service.models, MODEL: served})


def replace_models(service: Service, models: Mapping[str, ServedModel]) -> Service:
    return Service(service.config, models, service.metrics)


async def test_a_request_beats_the_model_s_sampling_value_by_value() -> None:
    student = ScriptedBackend(says("x"))
    service = with_defaults(service_of(student), {"temperature": 0.6, "top_k": 20})
    assert await sampled(service, student, chat(top_k=5)) == Sampling(0.6, top_k=5)


async def test_a_student_alone_has_neutral_values() -> None:
    student = ScriptedBackend(says("x"))
    assert await sampled(service_of(student), student, chat(model="student/s")) == Sampling(1.0)


@pytest.mark.parametrize("name", FURTHER)
@pytest.mark.parametrize(
    ("path", "model", "method"),
    [
        ("", MODEL, "motab"),
        ("motab.teacher.", MODEL, "motab"),
        ("", "teacher/t", None),
        ("", MODEL, "teacher"),
        ("", "student/s", None),
    ],
)
async def test_a_value_that_the_server_has_no_field_for_is_refused_by_its_path(
    path: str, model: str, method: str | None, name: str
) -> None:
    service = service_of(*straying())
    for upstream in service.upstreams():
        upstream.unsampled = frozenset({name})
    motab = {} if method is None else {"method": method}
    value = {name: FURTHER[name]}
    body = {**chat(model=model), "motab": {**motab, **({"teacher": value} if path else {})}}
    status, error = await error_of(service, CHAT, body if path else {**body, **value})
    assert (status, error["param"], error["code"]) == (400, path + name, "unsupported_field")
    assert name in error["message"]


async def test_a_neutral_value_is_taken_whatever_the_server_has() -> None:
    student = ScriptedBackend(says("x"))
    service = service_of(student)
    for upstream in service.upstreams():
        upstream.unsampled = frozenset(FURTHER)
    neutral = {"top_k": -1, "min_p": 0, "presence_penalty": 0, "repetition_penalty": 1}
    assert await sampled(service, student, chat(**neutral)) == Sampling(1.0)


async def test_skd_takes_no_penalties_where_they_change_the_log_probabilities() -> None:
    service = service_of(*straying())
    student = service.models[MODEL].pair.of("student")
    student.writes_logprobs = "scaled"
    body = chat(presence_penalty=0.5, motab={"method": "skd"})
    status, error = await error_of(service, CHAT, body)
    assert (status, error["param"]) == (400, "presence_penalty")
    student.writes_logprobs = "yes"
    assert (await answer(service, CHAT, body)).status_code == 200


async def test_the_trace_has_the_teacher_s_values_only_if_one_was_changed() -> None:
    plain = (await answer(service_of(*straying()), MOTAB_CHAT, chat())).json()
    assert "teacher" not in plain["choices"][0]["motab"]["params"]
    body = chat(motab={"teacher": {"temperature": 0.1, "top_k": 3}})
    changed = (await answer(service_of(*straying()), MOTAB_CHAT, body)).json()
    params = changed["choices"][0]["motab"]["params"]
    assert params["teacher_temperature"] == 0.1
    assert params["teacher"]["top_k"] == 3


# Variables of the chat templates.


@dataclass
class ScriptedTemplate:
    """A template whose model thinks unless `enable_thinking` is false."""

    takes_kwargs: bool = True
    knows_effort: bool = True

    async def takes_effort(self) -> bool:
        return self.knows_effort

    async def reasoning(self, kwargs: Mapping[str, Any]) -> Reasoning:
        return Reasoning("think" if kwargs.get("enable_thinking", True) else "none")


OFF = {"enable_thinking": False}


async def test_both_models_questions_have_the_request_s_variables() -> None:
    student, teacher = straying()
    await answer(service_of(student, teacher), CHAT, chat(chat_template_kwargs=OFF))
    for question in (*student.rendered, *teacher.rendered):
        assert question.template_kwargs == OFF
    assert student.rendered
    assert teacher.rendered


async def test_a_scored_text_s_question_has_them_too() -> None:
    student, teacher = straying()
    body = chat(text="A a.\n\nB b.", reasoning_effort="none")
    response = await answer(service_of(student, teacher), SCORE, body)
    assert response.status_code == 200, response.text
    assert [question.template_kwargs for question in teacher.rendered] == [
        {"enable_thinking": False, "reasoning_effort": "none"}
    ]


@pytest.mark.parametrize(("kwargs", "prefix"), [({}, "<think>\n\n</think>\n\n"), (OFF, "")])
async def test_a_teacher_that_is_kept_from_thinking_reads_no_empty_thought(
    kwargs: dict[str, Any], prefix: str
) -> None:
    student, teacher = straying()
    service = service_of(student, teacher)
    formats = (Reasoning("none"), Reasoning("think"))
    for upstream, reasoning in zip(service.upstreams(), formats, strict=True):
        upstream.reasoning, upstream.template = reasoning, ScriptedTemplate()
    service.models[MODEL].pair.of("student").template = None
    await answer(service, CHAT, chat(chat_template_kwargs=kwargs))
    assert teacher.scorings[0].context.startswith(f"<user>Q<answer>{prefix}A a.")


@pytest.mark.parametrize(
    ("template", "fields", "param"),
    [
        (ScriptedTemplate(takes_kwargs=False), {"chat_template_kwargs": OFF}, "chat_template_kw"),
        (ScriptedTemplate(knows_effort=False), {"reasoning_effort": "low"}, "reasoning_effort"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_what_no_model_could_obey_is_refused(
    template: ScriptedTemplate, fields: dict[str, Any], param: str, stream: bool
) -> None:
    service = service_of(*straying())
    for upstream in service.upstreams():
        upstream.template = template
    status, error = await error_of(service, CHAT, chat(stream=stream, **fields))
    assert (status, error["code"]) == (400, "unsupported_field")
    assert error["param"].startswith(param)
    service.models[MODEL].pair.of("student").template = ScriptedTemplate()
    assert (await answer(service, CHAT, chat(**fields))).status_code == 200


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (text(chat_template_kwargs=OFF), "chat_template_kwargs"),
        (text(reasoning_effort="low"), "reasoning_effort"),
        (chat(chat_template_kwargs={"messages": []}), "chat_template_kwargs.messages"),
        (chat(chat_template_kwargs=[]), "chat_template_kwargs"),
        (chat(reasoning_effort="very"), "reasoning_effort"),
        (
            chat(chat_template_kwargs={"reasoning_effort": "low"}, reasoning_effort="high"),
            "reasoning_effort",
        ),
    ],
    ids=str,
)
async def test_variables_that_cannot_be_set_are_refused_by_name(
    body: dict[str, Any], param: str
) -> None:
    status, error = await error_of(
        service_of(*straying()), CHAT if "messages" in body else TEXT, body
    )
    assert (status, error["param"]) == (400, param)


async def test_variables_that_ask_for_nothing_pass_on_every_route() -> None:
    for path, body in ((CHAT, chat()), (TEXT, text())):
        asked = {**body, "chat_template_kwargs": {}, "reasoning_effort": None}
        assert (await answer(service_of(*straying()), path, asked)).status_code == 200
