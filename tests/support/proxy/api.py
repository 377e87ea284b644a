"""Asks the proxy's HTTP interface, in process or over a socket, and reads its answers."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from proxy.api.app import create_app
from proxy.api.metrics import Metrics
from proxy.api.service import Service
from proxy.backends.base import Sampling
from proxy.engine.pair import Pair
from proxy.engine.served_model import ServedModel
from proxy.server_config import ServerConfig
from proxy.serving.serve import Server, listen
from tests.support.patience import PATIENCE_S
from tests.support.scripted import Script, ScriptedBackend, pair, says, values

MODEL = "motab/small+large"
A, B, C = "A a.\n\n", "B b.\n\n", "C c.\n\n"
STITCHED = A + B + "However,\n\nRight."
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
MOTAB_CHAT, MOTAB_TEXT, SCORE = (
    "/v1/motab/chat/completions",
    "/v1/motab/completions",
    "/v1/motab/score",
)
NO_OPS: list[dict[str, Any]] = [
    {"background": False},
    {"best_of": 1},
    {"cache_prompt": True},
    {"chat_template_kwargs": {}},
    {"detokenize": True},
    {"early_stopping": False, "num_beams": 1, "no_repeat_ngram_size": 0},
    {"echo": False},
    {"frequency_penalty": 0.0},
    {"function_call": "none"},
    {"functions": []},
    {"guided_json": None},
    {"ignore_eos": False},
    {"include_stop_str_in_output": False},
    {"length_penalty": 1.0},
    {"logit_bias": {}},
    {"logprobs": False},
    {"metadata": {}},
    {"metadata": {"run": "a"}},
    {"min_p": 0.0},
    {"min_tokens": 0},
    {"mirostat_mode": 0, "smoothing_factor": 0.0},
    {"modalities": ["text"]},
    {"parallel_tool_calls": False},
    {"presence_penalty": 0},
    {"prompt_cache_key": "k"},
    {"repetition_penalty": 1},
    {"response_format": {"type": "text"}},
    {"return_token_ids": False},
    {"safety_identifier": "u"},
    {"service_tier": "auto"},
    {"skip_special_tokens": True},
    {"stop_token_ids": []},
    {"store": False},
    {"suffix": ""},
    {"tool_choice": "auto"},
    {"tool_choice": "none", "tools": [], "parallel_tool_calls": True},
    {"tools": []},
    {"tags": ["a"], "trace_id": "t", "user_id": "u"},
    {"top_k": -1},
    {"top_k": 0},
    {"top_logprobs": 0},
    {"transforms": []},
    {"truncation": "disabled"},
    {"usage": {"include": True}},
    {"use_beam_search": False},
    {"x-unknown": None},
    {"x-unknown": []},
]
"""Fields whose values ask for nothing."""
PROMPT_TOKENS = len("<user>Q<answer>")


def service_of(
    student: ScriptedBackend,
    teacher: ScriptedBackend | None = None,
    defaults: dict[str, Any] | None = None,
    **server: Any,
) -> Service:
    both = pair(student, teacher or ScriptedBackend())
    models = {
        MODEL: ServedModel(both, defaults or {}, {"student": "small", "teacher": "large"}),
        "student/s": ServedModel(
            Pair(both.student, None), {"method": "student"}, {"student": "small", "teacher": None}
        ),
        "teacher/t": ServedModel(
            Pair(None, both.teacher), {"method": "teacher"}, {"student": None, "teacher": "large"}
        ),
    }
    return Service(ServerConfig(**server), models, Metrics())


def straying() -> tuple[ScriptedBackend, ScriptedBackend]:
    """A student that strays at its second step, and the teacher that corrects it."""
    return ScriptedBackend(says((A, B, "tail"))), ScriptedBackend(
        says("Right", "."), values({A: 0.9, B: 0.05})
    )


@asynccontextmanager
async def in_process(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(service), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client


@asynccontextmanager
async def over_http(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    with listen("127.0.0.1", 0) as listener:
        server = Server(service, on_signals=False)
        task = asyncio.create_task(server.serve(sockets=[listener]))
        base_url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            async with asyncio.timeout(PATIENCE_S), httpx.AsyncClient(base_url=base_url) as client:
                yield client
        finally:
            server.should_exit = True
            await task


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": "Q"}], **fields}


def text(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": "Q", **fields}


async def answer(service: Service, path: str, body: Any, **how: Any) -> httpx.Response:
    async with asyncio.timeout(PATIENCE_S), in_process(service) as client:
        return await client.post(path, json=body, **how)


async def error_of(service: Service, path: str, body: Any) -> tuple[int, dict[str, Any]]:
    response = await answer(service, path, body)
    return response.status_code, error_in(response)


def error_in(response: httpx.Response) -> dict[str, Any]:
    body = response.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return error


def payloads(response: httpx.Response) -> list[Any]:
    """The payloads of the `data:` lines of unnamed events; [DONE] as the text it is."""
    found = []
    for event in response.text.removesuffix("\n\n").split("\n\n"):
        lines = event.split("\n")
        if lines[0].startswith("data: "):
            assert len(lines) == 1
            payload = lines[0].removeprefix("data: ")
            found.append(payload if payload == "[DONE]" else json.loads(payload))
    return found


async def chunks_of(service: Service, path: str, body: dict[str, Any]) -> list[Any]:
    response = await answer(service, path, {**body, "stream": True})
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    return payloads(response)


def streamed_text(chunks: list[Any], index: int = 0) -> str:
    choices = [c for chunk in chunks if chunk != "[DONE]" for c in chunk["choices"]]
    mine = [choice for choice in choices if choice["index"] == index]
    return "".join(c["delta"].get("content", "") if "delta" in c else c["text"] for c in mine)


def spans_of(choice: dict[str, Any], whole: str) -> list[tuple[str, str]]:
    return [(s["role"], whole[s["start"] : s["end"]]) for s in choice["motab"]["spans"]]


async def samples_of(client: httpx.AsyncClient) -> dict[tuple[str, ...], float]:
    """Every sample by its name and its labels' values, in the order of the labels' names."""
    response = await client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def iter_of(*scripts: Script) -> Callable[[Sampling], Script]:
    left = iter(scripts)
    return lambda _sampling: next(left)
