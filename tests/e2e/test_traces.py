"""Tests that `motab serve` sends its traces to a collector, and comes to no harm by a bad one."""

import signal
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.proxy.otlp import Collector, collector, values
from tests.support.proxy.workers import REQUEST, Served, ask_all, clients, failure, motab
from tests.support.replay import Replay

SECRET = "canary-of-the-collector"
TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE}-b7ad6b7169203331-01"


def environment(to: Collector, **more: str) -> dict[str, str]:
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": to.url,
        "OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer%20{SECRET}",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "2",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        **more,
    }


async def ask_traced(served: Served, stack: AsyncExitStack) -> None:
    (client,) = await clients(stack, 1)
    headers = {"traceparent": TRACEPARENT, "x-request-id": "req-1"}
    answer = await client.post(f"{served.url}/v1/completions", json=REQUEST, headers=headers)
    assert answer.status_code == 200


@pytest.mark.parametrize("num", [1, 2])
async def test_the_collector_gets_the_spans_and_the_server_the_trace(
    llama: Replay, tmp_path: Path, num: int
) -> None:
    async with collector() as to, AsyncExitStack() as stack:
        given = environment(to)
        async with motab(llama, tmp_path, num=num, environment=given, tracing=True) as served:
            await ask_traced(served, stack)
            assert await ask_all(await clients(stack, 8), served) == [200] * 8
            served.process.send_signal(signal.SIGTERM)
            assert await served.ended() == 0
    roots, drafts = to.named("text_completion student/only"), to.named("draft")
    assert len(roots) == len(drafts) == 9
    (root,) = (span for span in roots if span.trace_id.hex() == TRACE)
    (draft,) = (span for span in drafts if span.trace_id.hex() == TRACE)
    assert (root.parent_span_id.hex(), draft.parent_span_id) == ("b7ad6b7169203331", root.span_id)
    assert values(root.attributes)["motab.request_id"] == "req-1"
    assert values(draft.attributes)["gen_ai.request.model"] == "m"
    assert values(draft.attributes)["gen_ai.usage.output_tokens"] == 1
    sent = [seen.headers.get("traceparent") for seen in llama.seen if seen.path == "/completion"]
    assert f"00-{TRACE}-{draft.span_id.hex()}-01" in sent
    assert {to_.get("service.name") for to_ in to.resources} == {"motab"}
    assert {one["authorization"] for one in to.headers} == {f"Bearer {SECRET}"}
    assert len({span.trace_id for span in roots}) == 9


@pytest.mark.parametrize("answer", [None, 400, 503], ids=["hangs", "refuses", "is busy"])
async def test_a_collector_that_fails_harms_no_trajectory_and_no_end(
    llama: Replay, tmp_path: Path, answer: int | None
) -> None:
    async with collector(answer) as to, AsyncExitStack() as stack:
        given = environment(to)
        async with motab(llama, tmp_path, num=1, environment=given, tracing=True) as served:
            for _ in range(4):
                assert await ask_all(await clients(stack, 8), served) == [200] * 8
            served.process.send_signal(signal.SIGTERM)
            assert await served.ended() == 0
    assert to.headers
    assert SECRET not in "".join(served.lines)


async def test_a_collector_that_is_not_there_harms_no_trajectory(
    llama: Replay, tmp_path: Path
) -> None:
    async with collector() as gone:
        given = environment(gone, OTEL_SERVICE_NAME="mine")
    async with (
        AsyncExitStack() as stack,
        motab(llama, tmp_path, num=1, environment=given, tracing=True) as served,
    ):
        await ask_traced(served, stack)
        await served.until_said("Connection refused")
        served.process.send_signal(signal.SIGTERM)
        assert await served.ended() == 0


@pytest.mark.parametrize(
    ("variable", "value", "wanted"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "http/protobuf"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json", "http/protobuf"),
        ("OTEL_TRACES_EXPORTER", "zipkin", "otlp"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317", "http://localhost:4318"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "grpc://u:p@c:4317", "http://localhost:4318"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "1", "max_export_batch_size"),
    ],
)
async def test_a_setting_that_cannot_be_obeyed_is_refused_at_the_start(
    llama: Replay, tmp_path: Path, variable: str, value: str, wanted: str
) -> None:
    given: dict[str, Any] = {"environment": {variable: value}, "tracing": True}
    async with motab(llama, tmp_path, num=1, ready=False, **given) as served:
        said = await failure(served)
    assert said.startswith("server.tracing: ")
    assert variable in said or "max_" in said
    assert wanted in said
    assert "u:p@" not in said


async def test_without_the_extra_the_start_names_it(llama: Replay, tmp_path: Path) -> None:
    hidden = tmp_path / "hidden" / "opentelemetry"
    hidden.mkdir(parents=True)
    (hidden / "__init__.py").write_text("raise ModuleNotFoundError('no opentelemetry')\n")
    given: dict[str, Any] = {"environment": {"PYTHONPATH": str(hidden.parent)}, "tracing": True}
    async with motab(llama, tmp_path, num=1, ready=False, **given) as served:
        assert "pip install 'motab[otel]'" in await failure(served)
