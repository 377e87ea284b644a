"""The benchmark of real servers says what is wrong with what it was given, and counts rightly."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import orjson
import pytest
from typer.testing import CliRunner

from benchmarks.figures import Figure
from benchmarks.processes import Pair, Served, connections, published_loop
from benchmarks.published_loop import Done, Report
from benchmarks.servers.__main__ import app
from benchmarks.servers.asked import Answer, ask
from benchmarks.servers.counted import tokens_computed, total, why_not
from benchmarks.servers.findings import curves, findings
from benchmarks.servers.found import CannotMeasure, find
from benchmarks.servers.level import Level, Loop, Part
from benchmarks.servers.prompts import Prompt, num_shared, prompts
from tests.support.paths import ROOT

MODELS = ROOT / "trainer" / "reproduce" / "models"
SGLANG = {"data": [{"id": "tiny", "owned_by": "sglang", "root": "tiny"}]}
INFO = {"version": "0.5.23", "tokenizer_path": "/models/tiny"}
TINY = Served("http://127.0.0.1:9", "sglang", "tiny", str(MODELS / "student"))
EVENTS: tuple[dict[str, Any], ...] = (
    {"choices": [{"delta": {"role": "assistant"}}]},
    {"choices": [{"delta": {"reasoning_content": "12"}}]},
    {"choices": [{"delta": {}, "motab": {"breach": None, "steps": []}}]},
    {
        "choices": [],
        "usage": {
            "prompt_tokens": 5,
            "completion_tokens": 7,
            "motab": {"score_calls": 2, "x": None},
        },
    },
)


@contextmanager
def answering(answers: dict[str, Any], asked: list[Any] | None = None) -> Iterator[str]:
    """A server with these answers by path; bytes are sent as they are. Gives its URL.

    `asked` gets the bodies that are posted. After a POST it closes the connection unannounced, as
    servers do that wait no longer for the next request.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            found = answers.get(self.path)
            body = found if isinstance(found, bytes) else orjson.dumps(found)
            self.send_response(404 if found is None else 200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if asked is not None:
                asked.append(orjson.loads(body))
            self.do_GET()
            self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def stream(*events: dict[str, Any]) -> bytes:
    lines = [b"data: " + orjson.dumps(event) + b"\n\n" for event in events]
    return b": ping\n\n" + b"".join(lines) + b"data: [DONE]\n\n"


async def test_a_server_says_what_it_is() -> None:
    with answering({"/v1/models": SGLANG, "/server_info": INFO}) as url:
        async with connections() as http:
            found = await find(http, "teacher", f"{url}/v1/", None)
    assert found.served == Served(url, "sglang", "tiny", "/models/tiny")
    assert found.described == "tiny on sglang 0.5.23"


@pytest.mark.parametrize(
    ("answers", "model", "said"),
    [
        ({}, None, r"the student's server answers http\S+/v1/models with 404"),
        ({"/v1/models": b"<html>"}, None, "answers no JSON object: it is no student's server"),
        ({"/v1/models": {"data": []}}, None, "lists no models"),
        ({"/v1/models": SGLANG}, "large", "serves tiny, not 'large' .--student-model."),
        (
            {"/v1/models": {"data": [{"id": "a"}, {"id": "b"}]}},
            None,
            "serves a, b: name one of them .--student-model.",
        ),
        ({"/v1/models": {"data": [{"id": "a", "owned_by": "openai"}]}}, None, "as 'openai'; only"),
    ],
)
async def test_a_server_that_cannot_be_measured_is_named(
    answers: dict[str, Any], model: str | None, said: str
) -> None:
    with answering(answers) as url:
        async with connections() as http:
            with pytest.raises(CannotMeasure, match=said):
                await find(http, "student", url, model)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "127.0.0.1:9", "nowhere", ""])
def test_the_command_says_that_a_server_does_not_answer(url: str, tmp_path: Path) -> None:
    command = ["--student-url", url, "--teacher-url", url, "--output", str(tmp_path / "out")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1
    assert f"error: the student's server '{url}' does not answer" in done.output
    assert not (tmp_path / "out").exists()


async def test_the_prompts_are_each_models_own() -> None:
    teacher = replace(TINY, tokenizer=str(MODELS / "teacher"))
    made = list(await prompts(Pair(TINY, teacher), 3))
    assert len({prompt.student for prompt in made}) == 3
    for prompt in made:
        (message,) = prompt.field["messages"]
        assert message["content"] in prompt.student
        assert message["content"] in prompt.teacher
        assert prompt.student != prompt.teacher


async def test_models_without_a_template_get_raw_prompts(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((MODELS / "student" / "tokenizer.json").read_bytes())
    base = replace(TINY, tokenizer=str(tmp_path))
    (prompt,) = await prompts(Pair(base, TINY), 1)
    assert prompt.field == {"prompt": prompt.student}
    assert prompt.student == prompt.teacher


@pytest.mark.parametrize(
    ("tokenizer", "said"),
    [
        (None, "the teacher's server does not name its tokenizer: .* .--teacher-tokenizer."),
        (str(ROOT / "docs"), "has no tokenizer.json: .* .--teacher-tokenizer."),
    ],
)
async def test_a_missing_tokenizer_is_named(tokenizer: str | None, said: str) -> None:
    with pytest.raises(CannotMeasure, match=said):
        await prompts(Pair(TINY, replace(TINY, tokenizer=tokenizer)), 1)


async def test_llama_cpp_needs_no_tokenizer() -> None:
    student = replace(TINY, kind="llamacpp", tokenizer=None)
    (prompt,) = await prompts(Pair(student, TINY), 1)
    assert (list(prompt.field), prompt.student) == (["messages"], "")


async def test_a_llama_cpp_teacher_counts_its_own_tokens_of_a_question() -> None:
    read = {"/apply-template": b'{"prompt": "<q>"}', "/tokenize": b'{"tokens": [1, 2, 3]}'}
    with answering(read) as url:
        teacher = replace(TINY, kind="llamacpp", base_url=url)
        made = list(await prompts(Pair(TINY, teacher), 2))
    assert [(one.num_teacher, one.num_shared) for one in made] == [(3, 3), (3, 3)]
    with answering({}) as url:
        teacher = replace(TINY, kind="llamacpp", base_url=url)
        with pytest.raises(CannotMeasure, match="/apply-template answered 404"):
            await prompts(Pair(TINY, teacher), 2)


def test_questions_share_what_all_of_them_begin_with() -> None:
    assert num_shared([(1, 2, 3), (1, 2, 4), (1, 2)]) == 2
    assert num_shared([(1, 2), (3, 2)]) == 0
    assert num_shared([(1, 2)]) == 0


async def test_an_answer_has_its_times_its_trace_and_its_usage() -> None:
    with answering({"/v1/chat/completions": stream(*EVENTS)}) as url:
        async with connections() as http:
            answer = await ask(http, url, "tiny", Prompt({"messages": []}), 9)
    assert 0 < answer.first_s <= answer.seconds
    assert (answer.num_tokens, answer.usage) == (7, {"score_calls": 2, "x": 0})
    assert answer.trace == {"breach": None, "steps": []}
    assert (answer.num_prompt, answer.num_events) == (5, 1)


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ({}, "answered 404"),
        ({"/v1/completions": stream({"error": {"code": "upstream_failed"}})}, "upstream_failed"),
        ({"/v1/completions": stream(*EVENTS[:3])}, "the stream ended without its usage"),
    ],
)
async def test_an_answer_that_fails_is_an_error(answers: dict[str, Any], said: str) -> None:
    with answering(answers) as url:
        async with connections() as http:
            with pytest.raises(RuntimeError, match=said):
                await ask(http, url, "tiny", Prompt({"prompt": "?"}), 9)


@pytest.mark.parametrize(
    ("kind", "lines", "tokens"),
    [
        (
            "sglang",
            [
                'sglang:realtime_tokens_total{mode="prefill_compute",tp_rank="0"} 190.0',
                'sglang:realtime_tokens_total{mode="prefill_compute",tp_rank="1"} 10.0',
                'sglang:realtime_tokens_total{mode="prefill_cache",tp_rank="0"} 294.0',
            ],
            200,
        ),
        (
            "vllm",
            [
                'vllm:prompt_tokens_by_source_total{engine="0",source="local_compute"} 54.0',
                'vllm:prompt_tokens_by_source_total{engine="0",source="local_cache_hit"} 9.0',
                'vllm:prompt_tokens_by_source_created{source="local_compute"} 1.79e+09',
            ],
            54,
        ),
        ("llamacpp", ["llamacpp:prompt_tokens_total 31", "llamacpp:prompt_seconds_total 2"], 31),
        ("sglang", ["# nothing"], None),
    ],
)
def test_the_tokens_that_a_server_computed_are_read(
    kind: str, lines: list[str], tokens: float | None
) -> None:
    assert total(kind, lines) == tokens


async def test_a_server_without_metrics_counts_nothing() -> None:
    with answering({}) as url:
        async with connections() as http:
            assert await tokens_computed(http, replace(TINY, base_url=url)) is None
    assert "start it with --enable-metrics" in why_not(TINY)


def part(tokens: int, computed: float | None, breach: int | None = None) -> Part:
    usage = {"score_calls": 3, "student_tokens": tokens, "student_tokens_discarded": tokens // 5}
    answer = Answer(2.0, 0.5, tokens, {"breach": breach, "steps": [{}] * 4}, usage)
    return Part(4.0, [answer, answer], computed, 0.01)


def figures_of(level: Level) -> dict[str, Figure]:
    return {one.name.split(": ", 1)[1]: one for one in findings(level).figures}


LOOP = Loop(Report(20.0, 0.0, 0.0, 2, [Done(20.0, 4, 8, None, 200)]), 600.0)
LEVEL = Level(2, part(200, None), part(100, 220.0), part(100, None, 1), LOOP)


def test_a_levels_figures_are_ratios_of_what_was_measured() -> None:
    found = figures_of(LEVEL)
    assert found["plain student"].value == 100.0
    assert found["motab / plain student, tokens a second"].value == 0.5
    assert found["motab / published loop, tokens a second"].value == 5.0
    assert found["proxy's processor for a token"].value == pytest.approx(50.0)
    assert found["time to the first text, motab, p50"].value == 500.0
    assert found["scoring calls per step"].value == 0.75
    scored = found["teacher tokens computed / length"]
    assert (scored.value, scored.detail) == (1.1, "published loop: 3")
    wasted = found["student tokens wasted / kept, with breaches"]
    assert (wasted.value, wasted.detail) == (0.25, "40 / 160; 2 breaches in 2 texts")


def test_what_was_not_measured_has_no_figure_and_no_curve() -> None:
    level = replace(LEVEL, published=None, motab=part(100, None))
    assert not any(re.search("published|computed", name) for name in figures_of(level))
    charts = {chart.title: list(chart.curves) for chart in curves([level]).charts}
    assert charts == {
        "Throughput": ["plain student", "motab"],
        "Time to the first text": ["plain student", "motab"],
    }
    assert [chart.title for chart in curves([LEVEL]).charts][-1] == "Cost of scoring"


async def test_the_published_loop_gives_each_model_its_own_prompt() -> None:
    meta: dict[str, Any] = {"finish_reason": {"type": "stop"}}
    meta["input_token_logprobs"] = [[None, 1], [-0.1, 2]]
    meta["output_top_logprobs"] = [[[-0.1, 3]]]
    reply = {"/generate": {"text": "It is 12.", "meta_info": meta}}
    of_student: list[Any] = []
    of_teacher: list[Any] = []
    with answering(reply, of_student) as student, answering(reply, of_teacher) as teacher:
        pair = Pair(replace(TINY, base_url=student), replace(TINY, base_url=teacher))
        report = await published_loop(pair, ["Q: 12?"], teacher_prompts=["<q>12?"])
    assert [body["text"] for body in of_student] == ["Q: 12?"]
    assert [body["text"] for body in of_teacher] == ["<q>12?It is 12.", "<q>12?"]
    (done,) = report.done
    assert (done.num_steps, done.breach) == (1, None)
    assert 1 < done.num_tokens <= len("It is 12.")
