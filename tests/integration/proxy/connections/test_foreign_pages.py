"""Tests that pages of the web cannot use a server without keys, by whatever name they ask."""

import json
from typing import Any

import httpx
import pytest

from tests.support.proxy.api import CHAT, chat, error_in, in_process, service_of
from tests.support.scripted import ScriptedBackend, says

JSON = "application/json"


async def status(headers: list[tuple[str, str]], path: str = CHAT, **server: Any) -> httpx.Response:
    student = ScriptedBackend(says("x"))
    async with in_process(service_of(student, **server)) as client:
        if path != CHAT:
            return await client.get(path, headers=headers)
        body = json.dumps(chat(model="student/s"))
        response = await client.post(path, content=body, headers=headers)
    assert bool(student.rendered) == (response.status_code == 200)
    return response


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "LOCALHOST:8800", "127.0.0.1", "127.0.0.1:8800", "127.8.9.1", "[::1]:8800"),
        *("[::1]", "gpu1.lan", "GPU1.lan:80", "[fd00::1]:8800"),
    ],
)
async def test_our_own_names_are_answered(host: str) -> None:
    headers = [("host", host), ("content-type", JSON)]
    answered = await status(headers, allowed_hosts=["gpu1.lan", "fd00::1"])
    assert answered.status_code == 200


@pytest.mark.parametrize(
    "hosts",
    [
        ["rebound.example"],
        ["localhost.rebound.example:8800"],
        ["127.0.0.1.rebound.example"],
        ["rebound.example:8800@127.0.0.1"],
        ["localhost:8800/rebound.example"],
        ["localhost#rebound.example"],
        ["10.0.0.1"],
        ["0.0.0.0:8800"],
        ["[fd00::1]"],
        ["[localhost]"],
        [""],
        [":8800"],
        ["localhost", "rebound.example"],
        ["rebound.example", "localhost"],
    ],
)
@pytest.mark.parametrize("path", [CHAT, "/v1/models", "/ready", "/metrics", "/openapi.json"])
async def test_another_name_is_refused_without_keys(hosts: list[str], path: str) -> None:
    refused = await status([*(("host", host) for host in hosts), ("content-type", JSON)], path)
    assert refused.status_code == 403
    assert error_in(refused)["code"] == "foreign_page"


async def test_any_name_may_ask_whether_the_process_lives() -> None:
    assert (await status([("host", "10.0.0.1")], "/health")).status_code == 200


@pytest.mark.parametrize(
    ("server", "code"),
    [
        ({"api_keys": ["key"]}, 200),
        ({"api_keys": ["key"], "allowed_hosts": ["gpu1.lan"]}, 403),
        ({"api_keys": ["key"], "allowed_hosts": ["motab.example"]}, 200),
    ],
)
async def test_with_keys_every_name_is_answered_unless_names_are_listed(
    server: dict[str, Any], code: int
) -> None:
    headers = [("host", "motab.example"), ("authorization", "Bearer key"), ("content-type", JSON)]
    assert (await status(headers, **server)).status_code == code


@pytest.mark.parametrize(
    "origin",
    [
        *("http://page.example", "https://page.example:8800", "null", "", "file://", "http://"),
        *("http://localhost:3000", "http://localhost", "http://127.0.0.1:8800"),
        *("http://localhost:8800.page.example", "chrome-extension://localhost:8800"),
    ],
)
@pytest.mark.parametrize(
    "content_type", [JSON, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]
)
async def test_a_page_of_another_origin_is_refused(origin: str, content_type: str) -> None:
    headers = [("host", "localhost:8800"), ("origin", origin), ("content-type", content_type)]
    refused = await status(headers)
    assert refused.status_code == 403
    assert not [name for name in refused.headers if name.startswith("access-control-")]


@pytest.mark.parametrize("content_type", ["text/plain", "text/plain;application/json", ""])
async def test_what_a_form_can_send_is_no_request_even_without_an_origin(content_type: str) -> None:
    headers = [("host", "localhost:8800"), ("content-type", content_type)]
    assert (await status(headers)).status_code == 400


@pytest.mark.parametrize("origin", ["http://localhost:8800", "https://LOCALHOST:8800"])
async def test_a_page_of_our_own_origin_is_served(origin: str) -> None:
    headers = [("host", "localhost:8800"), ("origin", origin), ("content-type", JSON)]
    assert (await status(headers)).status_code == 200


async def test_no_page_is_allowed_to_send_more_than_a_form_can() -> None:
    asked = {
        "host": "localhost:8800",
        "origin": "http://page.example",
        "access-control-request-method": "POST",
    }
    async with in_process(service_of(ScriptedBackend())) as client:
        refused = await client.options(CHAT, headers=asked)
    assert refused.status_code == 403
    assert not [name for name in refused.headers if name.startswith("access-control-")]
