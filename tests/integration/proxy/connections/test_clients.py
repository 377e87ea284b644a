"""Tests OpenAI's client, and clients that leave."""

import asyncio
from typing import Any

import httpx
import openai
import pytest

from proxy.serving.serve import Server, listen
from tests.support.patience import PATIENCE_S
from tests.support.proxy.api import (
    CHAT,
    MODEL,
    SCORE,
    STITCHED,
    chat,
    in_process,
    over_http,
    samples_of,
    service_of,
    straying,
    text,
)
from tests.support.scripted import ScriptedBackend, says


async def test_openais_client_talks_a_second_turn_with_the_first_ones_message() -> None:
    student = ScriptedBackend(says("x"))
    async with (
        in_process(service_of(student)) as http,
        openai.AsyncOpenAI(
            base_url="http://localhost/v1", api_key="none", http_client=http, max_retries=0
        ) as client,
    ):
        messages: list[Any] = [{"role": "user", "content": "Q"}]
        first = await client.chat.completions.create(
            model=MODEL, messages=messages, extra_body={"motab": {"trace": "full"}}
        )
        messages += [first.choices[0].message, {"role": "user", "content": "and then?"}]
        second = await client.chat.completions.create(model=MODEL, messages=messages)
    assert second.choices[0].message.content == "x"
    assert [m.content for m in student.rendered[1].messages] == ["Q", "x", "and then?"]


async def test_openais_client_reads_a_stream_and_its_errors() -> None:
    service = service_of(*straying(), api_keys=["key"])
    async with over_http(service) as http:
        base_url = f"{http.base_url}/v1"
        async with openai.AsyncOpenAI(base_url=base_url, api_key="key", max_retries=0) as client:
            stream = await client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "Q"}], stream=True
            )
            told = [c.choices[0].delta.content or "" async for c in stream]
            assert "".join(told) == STITCHED
            with pytest.raises(openai.NotFoundError) as caught:
                await client.completions.create(model="none", prompt="Q")
            assert (caught.value.param, caught.value.code) == ("model", "model_not_found")
            with pytest.raises(openai.AuthenticationError):
                await client.with_options(api_key="wrong").models.list()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("correcting", [False, True])
async def test_when_the_client_leaves_what_runs_upstream_is_cancelled(
    stream: bool, correcting: bool
) -> None:
    student, teacher = straying()
    author = teacher if correcting else student
    author.script = says("x", asyncio.Event())
    service = service_of(student, teacher)
    async with over_http(service) as client:
        if stream:
            async with client.stream("POST", CHAT, json=chat(stream=True)) as response:
                await anext(response.aiter_lines())
                await author.until_called("write")
        else:
            task = asyncio.create_task(client.post(CHAT, json=chat()))
            await author.until_called("write")
            task.cancel()
        async with asyncio.timeout(PATIENCE_S):
            await author.writes[0].closed.wait()
        assert author.writes[0].cancelled
        samples = await samples_of(client)
    assert service.admission.num_active == 0
    assert samples["motab_trajectories_total", "motab", MODEL, "failed"] == 1
    assert samples["motab_requests_total", CHAT, "200" if stream else "499"] == 1


async def test_when_the_client_leaves_a_scoring_call_is_cancelled() -> None:
    teacher = ScriptedBackend(faults={("score", 0): asyncio.Event()})
    async with over_http(service_of(ScriptedBackend(), teacher)) as client:
        task = asyncio.create_task(client.post(SCORE, json={**text(), "text": "x"}))
        await teacher.until_called("score")
        task.cancel()
        async with asyncio.timeout(PATIENCE_S):
            await teacher.scorings[0].closed.wait()


async def test_a_client_that_leaves_while_it_sends_is_counted_and_asks_for_nothing() -> None:
    student = ScriptedBackend(says("x"))
    async with over_http(service_of(student)) as client:
        reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
        head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        writer.write(f"{head}content-length: 1000\r\n\r\n".encode() + b'{"model":')
        await writer.drain()
        writer.close()
        async with asyncio.timeout(PATIENCE_S):
            await reader.read()
            samples = await samples_of(client)
            while ("motab_requests_total", CHAT, "499") not in samples:
                samples = await samples_of(client)
    assert samples["motab_requests_total", CHAT, "499"] == 1
    assert not student.rendered


async def test_a_server_that_ends_lets_running_requests_finish() -> None:
    gate = asyncio.Event()
    student = ScriptedBackend(says("x", gate, "y"))
    service = service_of(student)
    with listen("127.0.0.1", 0) as listener:
        server = Server(service, on_signals=False)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        base_url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with asyncio.timeout(PATIENCE_S), httpx.AsyncClient(base_url=base_url) as client:
            request = asyncio.create_task(client.post(CHAT, json=chat()))
            await student.until_called("write")
            server.drain()
            gate.set()
            response = await request
            await serving
    assert response.json()["choices"][0]["message"]["content"] == "xy"
    assert service.admission.draining
