"""Tests the spans of trajectories and of other requests, in memory."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from motab.answers import JudgedAnswers
from proxy.api.service import Service
from proxy.backends.base import Call
from proxy.backends.transport.retry import RetryPolicy
from proxy.engine.pair import Pair
from proxy.engine.served_model import ServedModel
from proxy.engine.upstream import Upstream
from proxy.errors import UpstreamFailed
from proxy.tracing.attributes import of_request
from proxy.tracing.open_telemetry import OpenTelemetry
from tests.integration.proxy.api.test_plain_calls import TOOLS, Route
from tests.support.patience import PATIENCE_S
from tests.support.proxy.api import (
    CHAT,
    MODEL,
    SCORE,
    TEXT,
    A,
    B,
    chat,
    in_process,
    iter_of,
    samples_of,
    service_of,
    straying,
    text,
)
from tests.support.replay import json_reply, replay
from tests.support.scripted import ScriptedBackend, says, values

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"


@dataclass
class Traced:
    """A tracer that keeps its spans."""

    kept: InMemorySpanExporter = field(default_factory=InMemorySpanExporter)
    provider: TracerProvider = field(default_factory=lambda: TracerProvider(shutdown_on_exit=False))

    def watch(self, service: Service) -> Service:
        service.tracer = OpenTelemetry(self.provider)
        return service

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.kept.get_finished_spans() if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        (span,) = self.named(name)
        return span

    def everything(self) -> str:
        return "".join(span.to_json() for span in self.kept.get_finished_spans())


@pytest.fixture
def traced() -> Iterator[Traced]:
    made = Traced()
    made.provider.add_span_processor(SimpleSpanProcessor(made.kept))
    yield made
    made.provider.shutdown()


def known(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def parent_id(span: ReadableSpan) -> str | None:
    return None if span.parent is None else f"{span.parent.span_id:016x}"


def own_id(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"{span.context.span_id:016x}"


def trace_id(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"{span.context.trace_id:032x}"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_trajectory_is_a_span_and_its_calls_are_the_children(
    traced: Traced, stream: bool
) -> None:
    service = traced.watch(service_of(*straying()))
    async with in_process(service) as client:
        headers = {"x-request-id": "req-1", "traceparent": TRACEPARENT}
        await client.post(CHAT, json=chat(stream=stream, seed=5), headers=headers)
    root = traced.one(f"chat {MODEL}")
    assert (trace_id(root), parent_id(root), root.kind) == (TRACE, PARENT, SpanKind.SERVER)
    about = known(root)
    assert about["gen_ai.operation.name"] == "chat"
    assert about["gen_ai.request.model"] == MODEL
    assert about["gen_ai.request.seed"] == 5
    assert about["gen_ai.response.finish_reasons"] == ("stop",)
    assert about["gen_ai.usage.output_tokens"] == 2 + len("However,\n\n") + 2
    assert about["motab.method"] == "motab"
    assert about["motab.request_id"] == "req-1"
    assert (about["motab.outcome"], about["motab.breach_step"]) == ("breach", 1)
    assert about["motab.usage.student_tokens"] == 3
    assert about["motab.usage.teacher_tokens"] == 2
    draft, correction = traced.one("draft"), traced.one("correction")
    scores = traced.named("score")
    assert scores
    for child in (draft, correction, *scores):
        assert (trace_id(child), parent_id(child)) == (TRACE, own_id(root))
        assert child.kind == SpanKind.CLIENT
        assert known(child)["motab.queue_seconds"] >= 0
    assert known(draft)["motab.upstream"] == "student"
    assert known(draft)["gen_ai.usage.output_tokens"] == 3
    assert known(correction)["motab.upstream"] == "teacher"
    assert known(correction)["gen_ai.usage.output_tokens"] == 2
    assert known(correction)["gen_ai.response.finish_reasons"] == ("stop",)
    assert [event.name for event in correction.events] == ["first_token"]
    assert sum(known(score)["motab.num_steps"] for score in scores) == 2
    assert all(known(score)["motab.scoring"] == "prompt_logprobs" for score in scores)
    assert all(span.status.status_code == StatusCode.UNSET for span in (root, draft, *scores))


async def test_every_round_has_a_draft_and_a_correction_of_its_own(traced: Traced) -> None:
    student = ScriptedBackend(iter_of(says((A, B)), says((B, "tail"))))
    teacher = ScriptedBackend(iter_of(says("C c.\n\n", "x"), says("Right.")), values({B: 0.05}))
    async with in_process(traced.watch(service_of(student, teacher))) as client:
        await client.post(CHAT, json=chat(motab={"rounds": 2}))
    about = known(traced.one(f"chat {MODEL}"))
    assert (about["motab.breach_step"], about["motab.num_breaches"]) == (1, 2)
    assert about["motab.usage.correction_calls"] == 2
    assert [len(traced.named(name)) for name in ("draft", "correction")] == [2, 2]


async def test_a_span_says_which_correction_was_kept_and_no_answer(traced: Traced) -> None:
    student, teacher = straying()
    teacher.script = iter_of(says("\\boxed{4711}"), says(UpstreamFailed("teacher", "gone")))
    service = traced.watch(service_of(student, teacher))
    with JudgedAnswers("number") as service.reader:
        async with in_process(service) as client:
            await client.post(CHAT, json=chat(motab={"corrections": 2}))
    about = known(traced.one(f"chat {MODEL}"))
    names = ("num_corrections", "chosen_correction", "chosen_by", "num_lost_corrections")
    assert [about[f"motab.{name}"] for name in names] == [2, 0, "majority", 1]
    assert "4711" not in traced.everything()
    teacher.script = says("Right.")
    async with in_process(service) as client:
        await client.post(CHAT, json=chat())
    plain = known(traced.named(f"chat {MODEL}")[1])
    assert not {f"motab.{name}" for name in names} & set(plain)


async def test_a_draft_that_a_breach_halts_is_cancelled_and_no_error(traced: Traced) -> None:
    student, teacher = straying()
    student.script = says((A, B), asyncio.Event())
    async with in_process(traced.watch(service_of(student, teacher))) as client:
        await client.post(CHAT, json=chat())
    draft = traced.one("draft")
    assert known(draft)["motab.cancelled"] is True
    assert "gen_ai.response.finish_reasons" not in known(draft)
    assert draft.status.status_code == StatusCode.UNSET


async def test_each_choice_and_each_attempt_has_a_span(traced: Traced) -> None:
    student = ScriptedBackend(says(A), faults={("write", 1): UpstreamFailed("student", "down")})
    async with in_process(traced.watch(service_of(student))) as client:
        assert (await client.post(TEXT, json=text(n=2))).status_code == 200
    spans = traced.named(f"text_completion {MODEL}")
    assert sorted(known(span)["motab.choice"] for span in spans) == [0, 1, 1]
    failed = [span for span in spans if span.status.status_code == StatusCode.ERROR]
    assert [known(span)["error.type"] for span in failed] == ["upstream_failed"]


async def test_an_error_is_recorded_by_its_code_alone(traced: Traced) -> None:
    student = ScriptedBackend(
        says(A), faults={("write", 0): UpstreamFailed("student", "it quotes the CANARY")}
    )
    async with in_process(traced.watch(service_of(student))) as client:
        assert "CANARY" in (await client.post(CHAT, json=chat())).text
    for span in (traced.one(f"chat {MODEL}"), traced.one("draft")):
        assert known(span)["error.type"] == "upstream_failed"
        assert span.status.status_code == StatusCode.ERROR
        assert not span.status.description
    assert "CANARY" not in traced.everything()


async def test_an_unknown_error_is_recorded_as_an_internal_error(traced: Traced) -> None:
    student = ScriptedBackend(says(A), faults={("write", 0): RuntimeError("CANARY")})
    async with in_process(traced.watch(service_of(student))) as client:
        assert (await client.post(CHAT, json=chat())).status_code == 500
    assert known(traced.one(f"chat {MODEL}"))["error.type"] == "internal_error"
    assert "CANARY" not in traced.everything()


async def test_a_deadline_ends_the_trajectory_with_an_error_and_cancels_its_calls(
    traced: Traced,
) -> None:
    student = ScriptedBackend(says(asyncio.Event()))
    service = traced.watch(service_of(student, request_timeout_s=0.05))
    async with in_process(service) as client:
        assert (await client.post(CHAT, json=chat())).status_code == 504
    assert known(traced.one(f"chat {MODEL}"))["error.type"] == "deadline_exceeded"
    assert known(traced.one("draft"))["motab.cancelled"] is True


async def test_no_span_holds_a_part_of_a_question_or_an_answer(traced: Traced) -> None:
    body = chat(motab={"revise": "REVISE"}, stop=["STOP"], user="USER", metadata={"a": "META"})
    body["messages"] = [{"role": "user", "content": "QUESTION"}]
    student = ScriptedBackend(says(("STEP.\n\n", "FLAW.\n\n")))
    judge = values({"STEP.\n\n": 0.9, "FLAW.\n\n": 0.05})
    teacher = ScriptedBackend(says("RIGHT"), judge)
    async with in_process(traced.watch(service_of(student, teacher))) as client:
        answered = (await client.post(CHAT, json=body)).text
        await client.post(SCORE, json={**text(), "text": "TEXT.\n\nMORE"})
    assert "RIGHT" in answered
    spans = traced.everything()
    assert "correction" in spans
    for word in ("QUESTION", "STEP", "FLAW", "RIGHT", "REVISE", "STOP", "USER", "META", "MORE"):
        assert word not in spans


def crowded(backend: ScriptedBackend) -> Service:
    """A service whose one upstream takes one call at a time, and reports its load."""
    service = service_of(ScriptedBackend())
    load = partial(service.metrics.upstream_load, "only")
    only = Upstream("only", backend, backend, (backend,), 1, model="m", on_load=load)
    labels = {"student": "m", "teacher": "m"}
    models = {"pair": ServedModel(Pair(only, only), {}, dict(labels))}
    return replace(service, models=models)


async def until_waiting(client: httpx.AsyncClient, num: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while (await samples_of(client))["motab_upstream_waiting", "write", "only"] != num:
        await asyncio.sleep(0)  # a request in this process need not give way to others
        assert time.monotonic() < deadline


async def test_the_time_in_the_queue_is_an_attribute(traced: Traced) -> None:
    gate = asyncio.Event()
    backend = ScriptedBackend(iter_of(says(gate, "x"), says("y")))
    async with in_process(traced.watch(crowded(backend))) as client:
        body = {"model": "pair", "prompt": "Q", "motab": {"method": "student"}}
        first = asyncio.create_task(client.post(TEXT, json=body))
        await backend.until_called("write")
        second = asyncio.create_task(client.post(TEXT, json=body))
        await until_waiting(client, 1)
        began = time.monotonic()
        await asyncio.sleep(0.02)
        waited_s = time.monotonic() - began
        gate.set()
        await asyncio.gather(first, second)
    one, other = sorted(known(span)["motab.queue_seconds"] for span in traced.named("draft"))
    assert one < other
    assert waited_s <= other
    assert [known(span)["gen_ai.request.model"] for span in traced.named("draft")] == ["m", "m"]


async def test_a_trajectory_that_leaves_the_queue_is_cancelled_there(traced: Traced) -> None:
    backend = ScriptedBackend(says(asyncio.Event()))
    service = traced.watch(crowded(backend))
    async with in_process(service) as client:
        body = {"model": "pair", "prompt": "Q", "motab": {"method": "student"}}
        first = asyncio.create_task(client.post(TEXT, json=body))
        await backend.until_called("write")
        second = asyncio.create_task(client.post(TEXT, json=body))
        await until_waiting(client, 1)
        second.cancel()
        await until_waiting(client, 0)
        first.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        samples = await samples_of(client)
    assert all(known(span)["motab.cancelled"] for span in traced.named("draft"))
    assert all(known(span)["motab.cancelled"] for span in traced.named("text_completion pair"))
    assert samples["motab_upstream_running", "write", "only"] == 0


async def test_a_text_that_is_scored_and_a_request_that_is_passed_on_have_spans(
    traced: Traced,
) -> None:
    service = traced.watch(service_of(*straying()))
    for upstream in service.upstreams():
        upstream.chat = Route()
    async with in_process(service) as client:
        await client.post(SCORE, json={**text(), "text": A + B})
        await client.post(CHAT, json=chat(model="student/s", **TOOLS))
    root, score = traced.one(f"score {MODEL}"), traced.one("score")
    assert parent_id(score) == own_id(root)
    assert known(score)["motab.num_steps"] == 2
    plain = known(traced.one("chat student/s"))
    assert (plain["motab.method"], plain["gen_ai.usage.output_tokens"]) == ("plain", 3)


@pytest.mark.parametrize(
    "given", ["", "garbage", f"00-{'0' * 32}-{PARENT}-01", f"ff-{TRACE}-{PARENT}-01"]
)
async def test_a_request_without_a_trace_begins_one_of_its_own(traced: Traced, given: str) -> None:
    async with in_process(traced.watch(service_of(*straying()))) as client:
        await client.post(CHAT, json=chat(), headers={"traceparent": TRACEPARENT})
        await client.post(CHAT, json=chat(), headers={"traceparent": given} if given else {})
    first, second = traced.named(f"chat {MODEL}")
    assert trace_id(first) == TRACE
    assert second.parent is None
    assert trace_id(second) != TRACE


async def test_a_trace_that_its_beginner_does_not_sample_is_not_recorded(traced: Traced) -> None:
    async with in_process(traced.watch(service_of(*straying()))) as client:
        headers = {"traceparent": f"{TRACEPARENT[:-2]}00"}
        assert (await client.post(CHAT, json=chat(), headers=headers)).status_code == 200
    assert not traced.kept.get_finished_spans()


async def test_a_server_gets_the_trace_and_a_failed_attempt_is_an_event(traced: Traced) -> None:
    headers = {b"traceparent": TRACEPARENT.encode(), b"tracestate": b"vendor=1"}
    tracer = OpenTelemetry(traced.provider)
    async with replay(retry=RetryPolicy(2, 60.0, first_s=0.0)) as up:
        up.on("POST", "/x", json_reply({"error": "CANARY"}, 503), json_reply({}))
        tracer.follow(headers)
        root = tracer.start(of_request("chat", "pair", "r", "motab"))
        with root, root.child("draft", {}) as span:
            await up.client.post("/x", {}, Call("r-0", span=span))
        await up.client.post("/x", {}, Call("r-1"))
    (event,) = traced.one("draft").events
    assert (event.name, dict(event.attributes or {})) == (
        "failed_attempt",
        {"error.type": "upstream_failed", "motab.path": "/x"},
    )
    sent = [seen.headers.get("traceparent") for seen in up.seen]
    assert sent == [f"00-{TRACE}-{own_id(traced.one('draft'))}-01"] * 2 + [None]
    assert up.seen[0].headers["tracestate"] == "vendor=1"
    assert "CANARY" not in traced.everything()


def test_a_proxy_without_traces_does_not_import_the_library() -> None:
    code = (
        "import sys, proxy.serving.serve, proxy.wiring.models, motab.cli;"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
