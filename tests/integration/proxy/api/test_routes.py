"""Tests headers, keys, and the routes that answer no question."""

import asyncio
import json
import re
import time

import pytest
from openai.types import Model

from proxy.errors import UpstreamUnreachable
from tests.support.patience import PATIENCE_S
from tests.support.proxy.api import (
    CHAT,
    MODEL,
    MOTAB_CHAT,
    MOTAB_TEXT,
    SCORE,
    TEXT,
    answer,
    chat,
    error_in,
    in_process,
    over_http,
    service_of,
)
from tests.support.scripted import ScriptedBackend, says


async def test_a_clients_request_id_is_echoed_and_leads_to_the_answers_id() -> None:
    student = ScriptedBackend(says("x"))
    headers = {"x-request-id": "abc-123"}
    response = await answer(service_of(student), CHAT, chat(), headers=headers)
    assert response.headers["x-request-id"] == "abc-123"
    assert response.json()["id"] == "chatcmpl-abc-123"
    assert student.writes[0].session_id == "abc-123-0"


@pytest.mark.parametrize(
    "hostile", [b"", b"a b", b"a\tb", b"x" * 129, "é".encode(), b"a\x7fb", None]
)
async def test_without_a_usable_request_id_one_is_made(hostile: bytes | None) -> None:
    headers = [] if hostile is None else [(b"x-request-id", hostile)]
    async with in_process(service_of(ScriptedBackend(says("x")))) as client:
        response = await client.post(CHAT, json=chat(), headers=headers)
    assert re.fullmatch("[0-9a-f]{32}", response.headers["x-request-id"])


@pytest.mark.parametrize("stream", [False, True])
async def test_the_overhead_is_our_own_time_without_the_upstreams(stream: bool) -> None:
    gate = asyncio.Event()
    student = ScriptedBackend(says(gate, "x"))
    async with in_process(service_of(student)) as client:
        began = time.perf_counter()
        task = asyncio.create_task(client.post(CHAT, json=chat(stream=stream)))
        await student.until_called("write")
        waited_from = time.perf_counter()
        await asyncio.sleep(0.3)
        waited_s = time.perf_counter() - waited_from
        gate.set()
        response = await task
        took_s = time.perf_counter() - began
    # The student's time is at least what it was made to wait, so ours is at most the rest.
    assert 0 <= float(response.headers["x-motab-overhead-ms"]) <= 1000 * (took_s - waited_s)


async def test_errors_have_the_headers_too() -> None:
    service = service_of(ScriptedBackend(), api_keys=["key"])
    response = await answer(service, CHAT, chat(), headers={"x-request-id": "abc"})
    assert response.headers["x-request-id"] == "abc"
    assert float(response.headers["x-motab-overhead-ms"]) >= 0


async def test_answers_and_refusals_say_how_much_may_be_asked_in_a_minute() -> None:
    # curator asks without messages, only to read these, and without them limits itself to 200.
    service = service_of(ScriptedBackend(says("x")), max_concurrent=7, max_total_tokens=1000)
    for body in (chat(), chat(messages=[])):
        headers = (await answer(service, CHAT, body)).headers
        assert int(headers["x-ratelimit-limit-requests"]) == 7 * 60
        assert int(headers["x-ratelimit-limit-tokens"]) == 7 * 60 * 1000


@pytest.mark.parametrize(
    "given", [None, "Bearer wrong", "Bearer ", "Bearer keys", "Bearer key ", "Basic key", ""]
)
async def test_a_wrong_key_is_refused_everywhere_but_on_the_open_paths(given: str | None) -> None:
    headers = {} if given is None else {"authorization": given}
    student = ScriptedBackend(says("x"))
    async with in_process(service_of(student, api_keys=["key", "other"])) as client:
        for path in (CHAT, TEXT, MOTAB_CHAT, MOTAB_TEXT, SCORE):
            response = await client.post(path, json=chat(), headers=headers)
            assert response.status_code == 401
            error = error_in(response)
            assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
        for path in ("/v1/models", f"/v1/models/{MODEL}", "/docs", "/openapi.json"):
            assert (await client.get(path, headers=headers)).status_code == 401
        for path in ("/health", "/ready", "/metrics"):
            assert (await client.get(path, headers=headers)).status_code == 200
    assert not student.rendered


@pytest.mark.parametrize("key", ["key", "other"])
async def test_each_of_the_keys_opens_the_server(key: str) -> None:
    service = service_of(ScriptedBackend(says("x")), api_keys=["key", "other"])
    headers = {"authorization": f"Bearer {key}"}
    assert (await answer(service, CHAT, chat(), headers=headers)).status_code == 200


async def test_the_models_are_listed_and_found_by_names_with_slashes() -> None:
    async with in_process(service_of(ScriptedBackend())) as client:
        listed = (await client.get("/v1/models")).json()
        assert listed["object"] == "list"
        models = [Model.model_validate(model) for model in listed["data"]]
        assert [model.id for model in models] == [MODEL, "student/s", "teacher/t"]
        for name in (MODEL, "motab%2Fsmall+large"):
            found = await client.get(f"/v1/models/{name}")
            assert found.json() == listed["data"][0]
        missing = await client.get("/v1/models/motab/none")
    assert missing.status_code == 404
    assert error_in(missing)["param"] == "model"


async def test_health_says_alive_whatever_the_upstreams_do() -> None:
    down = ScriptedBackend(faults={("check", 0): UpstreamUnreachable("student", "down")})
    async with in_process(service_of(down)) as client:
        response = await client.get("/health")
    assert (response.status_code, response.json()) == (200, {"status": "alive"})


async def test_ready_says_which_upstream_does_not_answer() -> None:
    down = UpstreamUnreachable("teacher", "no connection")
    service = service_of(ScriptedBackend(), ScriptedBackend(faults={("check", 0): down}))
    async with in_process(service) as client:
        first, second = await client.get("/ready"), await client.get("/ready")
    assert first.status_code == 503
    assert first.json() == {
        "status": "unready",
        "upstreams": {"student": "ok", "teacher": "upstream 'teacher': no connection"},
    }
    assert second.status_code == 200
    assert second.json()["status"] == "ready"


async def test_ready_says_what_is_wrong_only_to_a_client_with_a_key() -> None:
    down = UpstreamUnreachable("teacher", "no connection to http://user:word@10.0.0.1")
    faults: dict[tuple[str, int], Exception | asyncio.Event] = {("check", k): down for k in (0, 1)}
    service = service_of(ScriptedBackend(), ScriptedBackend(faults=faults), api_keys=["key"])
    async with in_process(service) as client:
        unknown = await client.get("/ready", headers={"authorization": "Bearer wrong"})
        known = await client.get("/ready", headers={"authorization": "Bearer key"})
    assert (unknown.status_code, known.status_code) == (503, 503)
    upstreams = {"student": "ok", "teacher": "failed"}
    assert unknown.json() == {"status": "unready", "upstreams": upstreams}
    assert known.json()["upstreams"]["teacher"].startswith("upstream 'teacher': no connection")


async def test_many_who_ask_whether_it_is_ready_make_few_calls() -> None:
    gate = asyncio.Event()
    student = ScriptedBackend(faults={("check", 0): gate})
    async with asyncio.timeout(PATIENCE_S), in_process(service_of(student)) as client:
        asking = [asyncio.create_task(client.get("/ready")) for _ in range(50)]
        await student.until_called("check")
        gate.set()
        answers = await asyncio.gather(*asking)
    assert {answer.status_code for answer in answers} == {200}
    assert student._num_calls["check"] < 5


async def test_ready_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.api.readiness._TIMEOUT_S", 0.05)
    hanging = ScriptedBackend(faults={("check", 0): asyncio.Event()})
    async with asyncio.timeout(PATIENCE_S), in_process(service_of(hanging)) as client:
        response = await client.get("/ready")
    assert response.status_code == 503
    assert response.json()["upstreams"]["student"] == "no answer within 0.05 s"


async def test_while_draining_the_server_is_not_ready_but_alive() -> None:
    service = service_of(ScriptedBackend())
    service.admission.draining = True
    async with in_process(service) as client:
        ready, health = await client.get("/ready"), await client.get("/health")
    assert (ready.status_code, ready.json()["status"]) == (503, "draining")
    assert health.status_code == 200


async def test_a_bug_behind_a_route_without_a_body_is_told_as_any_other(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = service_of(ScriptedBackend())
    monkeypatch.setattr(service.metrics, "render", lambda: 1 / 0)
    async with in_process(service) as client:
        response = await client.get("/metrics", headers={"x-request-id": "abc"})
    assert response.status_code == 500
    assert "the proxy's log has the details" in error_in(response)["message"]
    assert response.headers["x-request-id"] == "abc"
    assert "unexpected error" in caplog.text


async def test_the_api_document_describes_the_bodies_and_wrong_methods_are_refused() -> None:
    async with in_process(service_of(ScriptedBackend())) as client:
        document = (await client.get("/openapi.json")).json()
        refused = [await client.put(path, json={}) for path in (CHAT, SCORE)]
    bodies = {
        path: operations["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        for path, operations in document["paths"].items()
        if "post" in operations
    }
    assert {path: ref.rpartition("/")[2] for path, ref in bodies.items()} == {
        CHAT: "ChatRequest",
        TEXT: "CompletionRequest",
        MOTAB_CHAT: "ChatRequest",
        MOTAB_TEXT: "MotabRequest",
        SCORE: "ScoreRequest",
    }
    assert [response.status_code for response in refused] == [405, 405]


async def test_the_api_document_refers_only_to_what_it_has_and_names_every_route() -> None:
    async with in_process(service_of(ScriptedBackend())) as client:
        text = (await client.get("/openapi.json")).text
    document = json.loads(text)
    referred = set(re.findall(r'"#/components/schemas/(\w+)"', text))
    assert referred == set(document["components"]["schemas"])
    gets = {path for path, operations in document["paths"].items() if "get" in operations}
    assert gets == {"/v1/models", "/v1/models/{name}", "/health", "/ready", "/metrics"}
    (parameter,) = document["paths"]["/v1/models/{name}"]["get"]["parameters"]
    assert (parameter["name"], parameter["in"], parameter["required"]) == ("name", "path", True)


@pytest.mark.parametrize("path", ["/health", "/v1/models"])
async def test_head_is_answered_as_get_without_a_body(path: str) -> None:
    async with over_http(service_of(ScriptedBackend())) as client:
        response = await client.head(path)
    assert response.status_code == 200
    assert int(response.headers["content-length"]) > 0
    assert response.content == b""
