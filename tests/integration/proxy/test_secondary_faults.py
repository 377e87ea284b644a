"""Tests that nothing secondary costs a trajectory: a count, a mark, a template's refusal."""

import asyncio
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import yaml

from proxy.api.metrics import Metrics
from proxy.api.service import Service
from proxy.backends.base import Call
from proxy.backends.judges.judge import Answer, Candidate, JudgeLogprob, JudgeSample
from proxy.config import load_config
from proxy.engine.pair import Pair
from proxy.engine.served_model import ServedModel
from proxy.errors import TokenizerFailed, UpstreamDenied, UpstreamFailed, UpstreamRefused
from proxy.server_config import ServerConfig
from proxy.wiring.models import open_service
from tests.support.proxy.api import (
    CHAT,
    MODEL,
    SCORE,
    STITCHED,
    answer,
    chat,
    error_of,
    service_of,
    straying,
    text,
)
from tests.support.replay import Reply, json_reply, replay
from tests.support.scripted import ScriptedBackend, pair, says, upstream

JUDGED = {"boundary": "static", "base_threshold": 0.3}


@pytest.mark.parametrize(
    "fault",
    [
        UpstreamFailed("student", "/tokenize answered 503"),
        TokenizerFailed("it spells another text"),
        ExceptionGroup("", [UpstreamFailed("student", "/tokenize answered 503")]),
    ],
)
async def test_a_revise_token_that_cannot_be_counted_costs_no_trajectory(fault: Exception) -> None:
    student, teacher = straying()
    student.faults["encode", 0] = fault
    response = await answer(service_of(student, teacher), CHAT, chat())
    assert response.status_code == 200
    body = response.json()
    assert body["choices"][0]["message"]["content"] == STITCHED
    assert body["usage"]["completion_tokens"] == 4  # two steps, and "Right" and "."


@pytest.mark.parametrize("replies", [[], [json_reply({"error": "busy"}, 503)]])
async def test_a_pairs_revise_token_is_counted_at_the_start_or_by_the_first_breach(
    replies: list[Reply], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spelt = [(6, "Wait,"), (7, "\n\n"), (5, "a")]
    tokens = json_reply({"tokens": [{"id": i, "piece": piece} for i, piece in spelt]})
    async with replay() as up:
        up.on("GET", "/props", json_reply({"total_slots": 1}))
        up.on("GET", "/health", json_reply({}))
        # Texts are sent with one more letter, whose token is 5.
        up.on("POST", "/tokenize", json_reply({"tokens": [5]}), *replies, tokens)
        upstream = {"kind": "llamacpp", "base_url": up.client.base_url, "model": "m"}
        path = tmp_path / "motab.yaml"
        settings = {"retries": {"attempts": 1}, "reasoning": "none"}
        pair = {"student": "s", "teacher": "s", "params": {"revise": "Wait,"}}
        values = {"upstreams": {"s": {**upstream, **settings}}, "models": {"pair": pair}}
        path.write_text(yaml.safe_dump(values))
        async with open_service(load_config(path)) as service:
            (student,) = service.upstreams()
            counted = [seen["content"] for seen in up.bodies("/tokenize")]
            assert counted.count("Wait,\n\na") == 1
            assert student.num_tokens_of == ({} if replies else {"Wait,\n\n": 2})
            assert ("the revise token cannot be counted" in caplog.text) is bool(replies)
            assert await student.num_tokens("Wait,\n\n", Call("breach")) == 2


async def test_a_bug_in_the_count_is_not_hidden() -> None:
    student, teacher = straying()
    student.faults["encode", 0] = ZeroDivisionError()
    status, error = await error_of(service_of(student, teacher), CHAT, chat())
    assert (status, error["code"]) == (500, "internal_error")


async def test_the_revise_token_is_counted_once() -> None:
    student, teacher = straying()
    service = service_of(student, teacher)
    usages = [(await answer(service, CHAT, chat())).json()["usage"] for _ in range(3)]
    assert student.encoded.count("However,\n\n") == 1
    assert {usage["completion_tokens"] for usage in usages} == {4 + len("However,\n\n")}
    other = (await answer(service, CHAT, chat(motab={"revise": "Wait,"}))).json()["usage"]
    assert other["completion_tokens"] == 4 + len("Wait,\n\n")


@pytest.mark.parametrize("who", ["student", "teacher"])
@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        (UpstreamRefused("up", "roles must alternate", status=400), 400, "invalid_value"),
        (UpstreamRefused("up", "roles must alternate", status=422), 400, "invalid_value"),
        (UpstreamRefused("up", "no such route", status=404), 502, "upstream_refused"),
        (UpstreamDenied("up", "a wrong key"), 502, "upstream_denied"),
    ],
)
async def test_a_template_that_refuses_the_messages_is_a_400(
    who: str, fault: Exception, status: int, code: str
) -> None:
    student, teacher = straying()
    {"student": student, "teacher": teacher}[who].faults["render", 0] = fault
    found, error = await error_of(service_of(student, teacher), CHAT, chat())
    assert (found, error["code"]) == (status, code)
    assert error["param"] == ("messages" if status == 400 else None)


@dataclass(slots=True)
class Judge:
    """Answers in order, then with good marks."""

    answers: list[Answer]
    asked: list[tuple[str, bool]] = field(default_factory=list)
    upstream: str = "teacher"

    async def ask(
        self, prompt: str, max_tokens: int, top_logprobs: int | None, call: Call
    ) -> Answer:
        del max_tokens, call
        self.asked.append((prompt, top_logprobs is not None))
        good = Answer("8", is_whole=True, top=(Candidate("8", 0.0),), num_cached_tokens=None)
        return self.answers.pop(0) if self.answers else good


BAD = Answer("looks fine: 8/10", is_whole=True, top=(Candidate("looks", 0.0),), num_cached_tokens=0)


def judged_by(judge: Judge) -> Service:
    both = pair(ScriptedBackend(says("S0.\n\n", "S1.\n\n")), ScriptedBackend())
    scorers = (JudgeLogprob(judge, 20), JudgeSample(judge))
    teacher = replace(upstream("teacher", ScriptedBackend()), scorers=scorers)
    labels: dict[str, str | None] = {"student": "small", "teacher": "large"}
    model = ServedModel(Pair(both.student, teacher), JUDGED, labels)
    return Service(ServerConfig(), {MODEL: model}, Metrics())


async def test_a_mark_that_is_none_is_asked_for_again() -> None:
    judge = Judge([BAD])
    response = await answer(judged_by(judge), CHAT, chat())
    assert response.status_code == 200
    first, again = judge.asked[:2]
    # A steady judge would give the same answer to the same words.
    assert again[0].startswith(first[0])
    assert len(again[0]) > len(first[0])
    assert "scoring_fallbacks" not in response.json()["choices"][0]["motab"]


async def test_then_the_next_way_of_scoring_is_asked_and_the_trace_says_so() -> None:
    judge = Judge([BAD, BAD])
    response = await answer(judged_by(judge), CHAT, chat())
    assert response.status_code == 200
    trace = response.json()["choices"][0]["motab"]
    assert trace["scoring"] == "judge_logprob"
    assert trace["scoring_fallbacks"] == {"judge_sample": [0]}
    assert [by_logprobs for _, by_logprobs in judge.asked[:4]] == [True, True, False, True]


async def test_a_way_that_the_client_wants_is_not_left() -> None:
    judge = Judge([BAD, BAD])
    asked = chat(motab={"scoring": "judge_logprob"})
    status, error = await error_of(judged_by(judge), CHAT, asked)
    assert (status, error["code"]) == (502, "upstream_malformed")
    assert len(judge.asked) == 2


async def test_a_judge_without_any_mark_fails() -> None:
    judge = Judge([BAD] * 4)
    status, error = await error_of(judged_by(judge), CHAT, chat())
    assert (status, error["code"]) == (502, "upstream_malformed")
    assert len(judge.asked) == 4


async def test_a_given_text_is_scored_by_the_next_way_too() -> None:
    judge = Judge([BAD, BAD])
    response = await answer(judged_by(judge), SCORE, {**text(), "text": "One."})
    assert response.status_code == 200
    assert response.json()["scoring"] == "judge_sample"


async def test_a_content_filter_ends_a_trajectory() -> None:
    student = ScriptedBackend(says("S0.\n\n", "S1", end="content_filter"))
    body = (await answer(service_of(student), CHAT, chat())).json()
    (choice,) = body["choices"]
    assert choice["finish_reason"] == "content_filter"
    assert choice["message"]["content"] == "S0.\n\nS1"


async def test_a_filtered_correction_ends_the_trajectory_that_it_corrects() -> None:
    student, teacher = straying()
    teacher.script = says("Right", end="content_filter")
    (choice,) = (await answer(service_of(student, teacher), CHAT, chat())).json()["choices"]
    assert choice["finish_reason"] == "content_filter"
    assert choice["message"]["content"].endswith("However,\n\nRight")


async def test_no_tokens_are_asked_of_no_text() -> None:
    student = ScriptedBackend(says("x"))
    student.faults["encode", 0] = asyncio.Event()
    assert (await answer(service_of(student), CHAT, chat())).status_code == 200
