"""Tests pairs with a scorer of their own, from the configuration to the record."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from proxy.errors import ConfigError, UpstreamMalformed, UpstreamUnreachable
from proxy.serving.reload import Reloader
from proxy.tracing.open_telemetry import OpenTelemetry
from proxy.wiring.models import open_service
from tests.support.patience import PATIENCE_S
from tests.support.proxy.api import CHAT, MOTAB_CHAT, MOTAB_TEXT, SCORE, in_process, samples_of
from tests.support.servers.own_scorer import OwnScorer, drawn
from tests.support.servers.scored_pair import NAME, STATIC, scored_pair
from trajectory_records.record import Record


def asked(question: str = "Q", model: str = "pair", **motab: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}]
    return {"model": model, "messages": messages, "seed": 7, "motab": motab}


async def test_the_decisions_are_those_of_the_scorers_values() -> None:
    breaches = 0
    async with scored_pair() as pair, open_service(pair.config()) as service:
        scorer = pair.scorers[0]
        async with in_process(service) as client:
            for number in range(12):
                scorer.seen.clear()
                response = await client.post(MOTAB_CHAT, json=asked(f"Q{number}"))
                assert response.status_code == 200, response.text
                assert response.headers["x-motab-scoring"] == "http"
                (choice,) = response.json()["choices"]
                trace = choice["motab"]
                assert trace["scoring"] == "http"
                steps = trace["steps"]
                breach = trace["breach"]
                breaches += breach is not None
                texts = _texts(scorer)
                assert len(steps) == len(texts) if breach is None else breach + 1 == len(steps)
                for index, step in enumerate(steps):
                    value = drawn("".join(texts[:index]), texts[index])
                    assert (step["value"], step["entropy"]) == (value, None)
                    assert (step["boundary"], step["teacher_tokens"]) == (0.3, 0)
                    assert step["safe"] == (value >= 0.3) == (breach is None or index < breach)
                for body in scorer.asked:
                    assert body["messages"] == [{"role": "user", "content": f"Q{number}"}]
                    assert body["steps"] == texts[: len(body["steps"])]
                kept = "".join(texts[: len(steps)])
                assert choice["message"]["content"].startswith(kept)
                usage = response.json()["usage"]["motab"]
                assert usage["teacher_scored_tokens"] == usage["teacher_cached_tokens"] == 0
                assert usage["score_calls"] == len(scorer.asked)
            samples = await samples_of(client)
    assert 0 < breaches < 12
    assert samples["motab_score_calls_total", "pair", "http"] > 12


def _texts(scorer: OwnScorer) -> list[str]:
    texts: list[str] = max((body["steps"] for body in scorer.asked), key=len)
    return texts


async def test_a_pair_without_a_scorer_refuses_it_and_no_request_can_bring_one() -> None:
    async with scored_pair() as pair, open_service(pair.config()) as service:
        async with in_process(service) as client:
            response = await client.post(CHAT, json=asked(model="plain", scoring="http"))
            error = response.json()["error"]
            assert (response.status_code, error["param"]) == (400, "motab.scoring")
            assert "this model has no scorer of its own" in error["message"]
            assert error["code"] == "scoring_unavailable"
            for scoring in ({"http": pair.scorers[0].base_url}, pair.scorers[0].base_url):
                response = await client.post(CHAT, json=asked(scoring=scoring))
                error = response.json()["error"]
                assert (response.status_code, error["param"]) == (400, "motab.scoring")
            response = await client.post(CHAT, json=asked(model="teacher/teacher", scoring="http"))
            assert response.status_code == 200  # that method scores nothing
        assert not pair.scorers[0].asked


async def test_a_request_may_name_the_scorer_or_a_way_of_the_teachers() -> None:
    async with scored_pair() as pair, open_service(pair.config()) as service:
        async with in_process(service) as client:
            response = await client.post(CHAT, json=asked(scoring="http"))
            assert response.headers["x-motab-scoring"] == "http"
            num = len(pair.scorers[0].asked)
            response = await client.post(CHAT, json=asked(scoring="prompt_logprobs"))
            assert response.headers["x-motab-scoring"] == "prompt_logprobs"
        assert len(pair.scorers[0].asked) == num


@pytest.mark.parametrize(
    ("motab", "param", "words"),
    [
        ({"boundary": "adaptive"}, "motab.boundary", "boundary must be 'static'"),
        (
            {"boundary": "quantile", "boundary_values": [0.5]},
            "motab.boundary",
            "boundary_values are quantiles of probabilities, so boundary must be 'static'",
        ),
        ({"method": "skd", "scoring": "http"}, "motab.method", "'skd' compares probabilities"),
    ],
)
async def test_what_needs_probabilities_is_a_400(
    motab: dict[str, Any], param: str, words: str
) -> None:
    async with (
        scored_pair() as pair,
        open_service(pair.config()) as service,
        in_process(service) as client,
    ):
        response = await client.post(CHAT, json=asked(**motab))
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param)
    assert words in error["message"]


@pytest.mark.parametrize("method", ["skd", "imitkd", "prefix", "student", "teacher"])
async def test_the_other_methods_go_without_the_scorer(method: str) -> None:
    async with scored_pair() as pair, open_service(pair.config()) as service:
        async with in_process(service) as client:
            response = await client.post(MOTAB_CHAT, json=asked(method=method))
        assert response.status_code == 200, response.text
        scoring = "prompt_logprobs" if method == "skd" else None
        assert response.json()["choices"][0]["motab"]["scoring"] == scoring
        assert not pair.scorers[0].asked


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        ({"base_threshold": 0.3}, "models.pair.params.boundary: the scorer's values come from"),
        ({"boundary": "static"}, "models.pair.params.base_threshold: the scorer's values come"),
    ],
)
async def test_a_pair_that_compares_its_values_with_the_papers_boundary_does_not_start(
    params: dict[str, Any], sentence: str
) -> None:
    async with scored_pair() as pair:
        with pytest.raises(ConfigError) as caught:
            async with open_service(pair.config(params)):
                pass
    assert str(caught.value).startswith(sentence)


async def test_a_scorer_that_is_down_or_speaks_another_protocol_ends_the_start() -> None:
    async with scored_pair() as pair:
        pair.scorers[0].fault = lambda: web.Response(text='{"values": [0.5, 1.5]}')
        with pytest.raises(UpstreamMalformed, match=r"upstream 'scoring/pair': .*not 1\.5"):
            async with open_service(pair.config()):
                pass
        with pytest.raises(UpstreamUnreachable, match="upstream 'scoring/pair': no connection"):
            async with open_service(pair.config(http="http://127.0.0.1:9")):
                pass


FAULTS = {
    "too many": '{"values": [0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9]}',
    "NaN": '{"values": [NaN]}',
    "text": '{"values": ["high"]}',
    "nothing": "{}",
    "no JSON": "<html>",
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_wrong_answer_is_a_502_and_never_a_score(fault: str) -> None:
    async with scored_pair() as pair, open_service(pair.config()) as service:
        pair.scorers[0].fault = lambda: web.Response(text=FAULTS[fault])
        async with in_process(service) as client:
            response = await client.post(MOTAB_CHAT, json=asked())
            error = response.json()["error"]
            assert (response.status_code, error["type"]) == (502, "upstream_error")
            assert error["message"].startswith("upstream 'scoring/pair': ")
            score = {"model": "pair", "prompt": "Q", "text": "A.\n\nB.\n\n"}
            response = await client.post(SCORE, json=score)
            assert response.status_code == 502


async def test_a_failure_that_passes_is_retried_and_counted() -> None:
    async with (
        scored_pair() as pair,
        open_service(pair.config(retries={"attempts": 3, "total_s": 30})) as service,
    ):
        scorer = pair.scorers[0]

        def once() -> web.Response:
            scorer.fault = None
            return web.Response(status=503, text="not now")

        scorer.fault = once
        async with in_process(service) as client:
            response = await client.post(MOTAB_CHAT, json=asked())
            samples = await samples_of(client)
        assert response.status_code == 200, response.text
    assert samples["motab_upstream_retries_total", "upstream_failed", NAME] == 1


async def test_readiness_names_the_scorer_and_asks_it_for_no_value() -> None:
    async with scored_pair() as pair, open_service(pair.config()) as service:
        scorer = pair.scorers[0]
        num = len(scorer.seen)
        async with in_process(service) as client:
            ready = (await client.get("/ready")).json()
            assert ready["upstreams"] == {"student": "ok", "teacher": "ok", NAME: "ok"}
            scorer.is_down = True
            response = await client.get("/ready")
        assert response.status_code == 503
        assert "answered 503: not now" in response.json()["upstreams"][NAME]
        assert len(scorer.seen) == num


async def test_replicas_of_a_scorer_take_over_from_each_other() -> None:
    async with (
        scored_pair(2) as pair,
        open_service(pair.config(retries={"attempts": 5, "total_s": 60})) as service,
    ):
        first, second = pair.scorers
        async with in_process(service) as client:
            for number in range(4):
                await client.post(MOTAB_CHAT, json=asked(f"Q{number}"))
            assert first.asked
            assert second.asked
            first.is_down = True
            for number in range(4):
                response = await client.post(MOTAB_CHAT, json=asked(f"Q{number}"))
                assert response.status_code == 200, response.text


async def test_a_reload_moves_to_another_scorer() -> None:
    async with scored_pair(2) as pair:
        first, second = pair.scorers
        reloader = Reloader()
        async with open_service(pair.config(http=first.base_url)) as service:
            async with reloader.running(service), asyncio.timeout(PATIENCE_S):
                reloader.ask(pair.config(http=second.base_url))
                replicas = service.models["pair"].pair.of("scorer").replicas
                assert replicas is not None
                while list(replicas.states()) != [second.base_url]:  # noqa: ASYNC110 - no event
                    await asyncio.sleep(0)
            async with in_process(service) as client:
                response = await client.post(MOTAB_CHAT, json=asked())
            assert response.status_code == 200, response.text
        assert second.asked
        assert not first.asked


async def test_the_key_is_sent() -> None:
    async with scored_pair() as pair, open_service(pair.config(api_key="a-scorers-key")) as service:
        async with in_process(service) as client:
            await client.post(MOTAB_CHAT, json=asked())
        keys = {headers["Authorization"] for headers in pair.scorers[0].headers}
    assert keys == {"Bearer a-scorers-key"}


@pytest.mark.parametrize("limit", [1, 64])
async def test_no_more_calls_are_open_than_the_scorer_takes(limit: int) -> None:
    async with (
        scored_pair() as pair,
        open_service(pair.config(max_concurrent=limit)) as service,
    ):
        scorer = pair.scorers[0]
        scorer.delay_s = 0.02
        async with in_process(service) as client:
            response = await client.post(MOTAB_CHAT, json={**asked(), "n": 6})
            samples = await samples_of(client)
    assert response.status_code == 200, response.text
    assert samples["motab_upstream_max_concurrent", "score", NAME] == limit
    assert (scorer.most_open == 1) == (limit == 1)


async def test_a_call_of_the_scorer_is_a_span_of_its_own() -> None:
    kept = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(kept))
    async with scored_pair() as pair, open_service(pair.config()) as service:
        service.tracer = OpenTelemetry(provider)
        async with in_process(service) as client:
            await client.post(MOTAB_CHAT, json=asked())
        (*_, headers) = pair.scorers[0].headers
    provider.shutdown()
    scores = [dict(s.attributes or {}) for s in kept.get_finished_spans() if s.name == "score"]
    assert scores
    for known in scores:
        assert (known["motab.upstream"], known["motab.scoring"]) == (NAME, "http")
        assert known["motab.num_steps"] in range(1, 30)
        assert "gen_ai.usage.input_tokens" not in known  # nobody counts them
    assert headers["traceparent"]


async def test_a_given_text_is_scored_by_the_scorer_in_one_call() -> None:
    async with scored_pair() as pair, open_service(pair.config()) as service:
        texts = ["A a.\n\n", "B b.\n\n", "tail"]
        body = {"model": "pair", "prompt": "Q", "text": "".join(texts)}
        async with in_process(service) as client:
            found = (await client.post(SCORE, json=body)).json()
            wrong = {**body, "motab": {"boundary": "adaptive"}}
            response = await client.post(SCORE, json=wrong)
            assert response.status_code == 400
            response = await client.post(SCORE, json={**body, "token_logprobs": True})
            assert response.json()["scoring"]["teacher"] == "prompt_logprobs"
        (seen,) = pair.scorers[0].asked
    assert seen == {"prompt": "Q", "steps": texts, "num_new": 3}
    assert found["scoring"] == "http"
    values = [drawn("".join(texts[:index]), text) for index, text in enumerate(texts)]
    assert [step["value"] for step in found["steps"]] == values
    assert found["usage"]["motab"]["teacher_scored_tokens"] == 0


async def test_a_begun_answer_is_the_first_step_that_the_scorer_sees() -> None:
    async with scored_pair() as pair, open_service(pair.config()) as service:
        body = asked()
        body["messages"].append({"role": "assistant", "content": "First, "})
        async with in_process(service) as client:
            response = await client.post(MOTAB_CHAT, json=body)
        assert response.status_code == 200, response.text
        seen = pair.scorers[0].asked[0]
    assert seen["steps"][0] == "First, "
    assert seen["num_new"] < len(seen["steps"])
    assert [message["role"] for message in seen["messages"]] == ["user"]


async def test_a_scorer_whose_window_is_full_ends_the_text_and_is_named() -> None:
    async with scored_pair() as pair, open_service(pair.config()) as service:
        scorer = pair.scorers[0]
        scorer.value = lambda _before, _step: 1.0

        def full() -> web.Response:
            if len(scorer.seen[-1]["steps"]) < 2:
                return web.json_response({"values": [1.0]})
            words = "the input is too long for the context window"
            return web.json_response({"error": words}, status=400)

        scorer.fault = full
        async with in_process(service) as client:
            response = await client.post(MOTAB_TEXT, json={"model": "pair", "prompt": "Q3"})
        (choice,) = response.json()["choices"]
    assert choice["finish_reason"] == "length"
    limited = {"model": "scorer", "limit": "context_tokens", "tokens": None}
    assert choice["motab"]["limited_by"] == limited


async def test_a_record_says_that_its_values_are_the_scorers(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    async with scored_pair() as pair:
        config = pair.config(STATIC, {"records": {"file": str(path)}})
        async with open_service(config) as service, in_process(service) as client:
            await client.post(CHAT, json=asked())
    record = Record.model_validate_json(path.read_text(encoding="utf-8").strip())
    assert record.scoring == "http"
    assert json.loads(path.read_text(encoding="utf-8"))["scoring"] == "http"
    assert all(step.value is not None for step in record.steps)
