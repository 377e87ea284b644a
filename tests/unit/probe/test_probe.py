import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from proxy.backends.base import Call, Context, Draft, Question, Sampling, Segment
from proxy.config import ModelConfig
from proxy.core.thinking import Reasoning
from proxy.core.types import Scoring, StepScore
from proxy.engine.upstream import Upstream
from proxy.errors import (
    ContextExceeded,
    RouterTokenises,
    UpstreamMalformed,
    UpstreamRefused,
    UpstreamUnreachable,
)
from proxy.probe.checks import (
    Subject,
    Written,
    chat_template,
    learn_limits,
    measured,
    reasoning,
    streams,
    texts,
    tokenizer,
)
from proxy.probe.pairs import judge_pair
from proxy.probe.report import PairReport, UpstreamChecks, UpstreamReport, no, not_applicable, ok
from proxy.probe.scoring import ways
from tests.support.scripted import ScriptedBackend, says, upstream

CALL = Call("probe")
Ids = Callable[[str], tuple[int, ...]]


def scripted_ids(text: str) -> tuple[int, ...]:
    return tuple(map(ord, text))


def shifted(text: str) -> tuple[int, ...]:
    return tuple(ord(letter) + 1 for letter in text)


def prefixed(text: str) -> tuple[int, ...]:
    return (32, *scripted_ids(text))


def other_for_emoji(text: str) -> tuple[int, ...]:
    return shifted(text) if "\U0001f680" in text else scripted_ids(text)


def refused(text: str) -> tuple[int, ...]:
    raise UpstreamMalformed("t", f"its tokens of {text!r} spell another text")


class Tokenising(ScriptedBackend):
    """A server with ids of its own: how it makes them of a prompt, and of a step."""

    def __init__(self, prompt: Ids = scripted_ids, step: Ids = scripted_ids) -> None:
        super().__init__()
        self.of_prompt, self.of_step = prompt, step

    async def render(self, question: Question, call: Call) -> Segment:
        assert question.prompt is not None
        return Segment(question.prompt, self.of_prompt(question.prompt))

    async def encode(self, texts: Sequence[str], call: Call) -> list[Segment]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._encode(text)) for text in texts]
        return [task.result() for task in tasks]

    async def _encode(self, text: str) -> Segment:
        return Segment(text, self.of_step(text))


class WriterOnly:
    """A server that tokenises nothing."""

    def __init__(self, backend: ScriptedBackend) -> None:
        self.check, self.write, self.decode = backend.check, backend.write, backend.decode


def subject(server: Any, reader: ScriptedBackend | None = None) -> Subject:
    return Subject(Upstream("t", reader or server, server, (), 4), CALL, 5.0)


# Tokenizers.


async def test_the_servers_own_tokenizer_is_said_to_be_so() -> None:
    check = await tokenizer(subject(ScriptedBackend()))
    assert (check.result, check.values) == ("ok", {"source": "server"})


async def test_a_local_tokenizer_with_the_servers_ids_agrees() -> None:
    check = await tokenizer(subject(Tokenising(), ScriptedBackend()))
    assert (check.result, check.values) == ("ok", {"source": "local"})
    assert check.detail == "local, with the server's ids for 4 texts"


async def test_a_local_tokenizer_with_other_ids_is_told_with_the_text() -> None:
    check = await tokenizer(subject(Tokenising(prompt=shifted), ScriptedBackend()))
    assert (check.result, check.values) == ("no", {"source": "local"})
    assert check.detail.startswith("the prompt 'Let us see.\\n\\n' is [76, ")
    assert " here, [77, " in check.detail
    check = await tokenizer(subject(Tokenising(step=other_for_emoji), ScriptedBackend()))
    assert check.result == "no"
    assert check.detail.startswith("the step 'na\u00efve")


async def test_the_tokenizer_of_a_model_folder_is_right_whatever_the_server_made_of_it() -> None:
    asked = subject(Tokenising(prompt=shifted), ScriptedBackend())
    asked.is_embedded = True
    check = await tokenizer(asked)
    assert (check.result, check.detail) == ("ok", "the model folder's own")


@pytest.mark.parametrize("ids", [prefixed, refused])
async def test_steps_are_not_compared_with_a_server_that_puts_a_space_before_them(ids: Ids) -> None:
    server = Tokenising(prompt=scripted_ids, step=ids)
    check = await tokenizer(subject(server, ScriptedBackend()))
    assert check.result == "ok"
    assert "a space before every text" in check.detail


async def test_a_server_that_fails_to_tokenise_is_not_taken_for_one_with_a_space() -> None:
    def fails(_: str) -> tuple[int, ...]:
        raise UpstreamUnreachable("t", "gone")

    asked = subject(Tokenising(step=fails), ScriptedBackend())
    check = await asked.attempt(tokenizer(asked))
    assert (check.result, check.detail) == ("failed", "gone")


async def test_a_local_tokenizer_is_not_compared_with_a_routers_in_front_of_the_server() -> None:
    def of_router(_: str) -> tuple[int, ...]:
        raise RouterTokenises("t")

    check = await tokenizer(subject(Tokenising(prompt=of_router), ScriptedBackend()))
    assert (check.result, check.detail) == (
        "not_applicable",
        "local, and a router tokenises in the server's place",
    )


async def test_a_local_tokenizer_has_nothing_to_agree_with_where_the_server_has_no_route() -> None:
    backend = ScriptedBackend()
    assert (await tokenizer(subject(WriterOnly(backend), backend))).result == "not_applicable"


# Templates.


async def test_a_chat_that_cannot_be_rendered_leaves_the_raw_prompt() -> None:
    backend = ScriptedBackend(faults={("render", 0): UpstreamRefused("t", "no template")})
    asked = subject(backend)
    check = await asked.attempt(chat_template(asked))
    assert (check.result, check.detail) == ("no", "no template")
    assert asked.question.prompt is not None
    check = await asked.attempt(chat_template(asked))
    assert check.result == "ok"
    assert asked.question.messages


# Streams.


def written(num_chunks: int, first_s: float, last_s: float, num_tokens: int = 10) -> Written:
    return Written("text", num_tokens, num_chunks, first_s, last_s, "length")


class Timed(ScriptedBackend):
    """Writes at the paces of its calls: the seconds before the first token, and from token to
    token, on a clock of its own.
    """

    def __init__(self, *paces: tuple[float, float]) -> None:
        super().__init__()
        self.paces, self.now = list(paces), 0.0

    def perf_counter(self) -> float:
        return self.now

    async def write(
        self, context: Context, sampling: Sampling, max_tokens: int, call: Call
    ) -> AsyncGenerator[Draft]:
        before_s, each_s = self.paces.pop(0)
        self.now += before_s
        for index in range(max_tokens):
            self.now += each_s if index else 0.0
            yield Draft(("x",))
        yield Draft((), "length")


@pytest.mark.parametrize(
    ("paces", "result"),
    [
        ([(0.1, 0.02)], "ok"),
        # A moment in which everything was busy.
        ([(1.5, 0.0), (0.1, 0.0), (0.1, 0.02)], "ok"),
        ([(1.5, 0.0), (0.1, 0.0), (1.5, 0.0), (0.1, 0.0), (0.1, 0.02)], "ok"),
        # A queue before a fast model.
        ([(5.0, 0.004), (5.0, 0.004), (5.0, 0.004)], "ok"),
        # A gateway that keeps all back until the end.
        ([(1.0, 0.0), (0.1, 0.0), (1.0, 0.0), (0.1, 0.0), (1.0, 0.0)], "no"),
    ],
)
async def test_only_what_always_holds_a_stream_back_is_said_to_do_so(
    monkeypatch: pytest.MonkeyPatch, paces: list[tuple[float, float]], result: str
) -> None:
    backend = Timed(*paces)
    monkeypatch.setattr("proxy.probe.checks.time", backend)
    assert streams(await measured(subject(backend))).result == result
    assert backend.paces == []


def test_a_stream_is_timed_from_its_first_token() -> None:
    check = streams(written(10, 0.5, 1.4))
    assert check.result == "ok"
    assert check.detail == "10 tokens in 10 chunks, first after 0.50 s, then 100.0 ms a token"
    assert (check.values["first_token_s"], check.values["ms_per_token"]) == (0.5, 100.0)


def test_chunks_that_come_all_at_once_are_no_stream() -> None:
    check = streams(written(10, 2.0, 2.05))
    assert (check.result, "at once" in check.detail) == ("no", True)
    # Too fast to tell.
    assert streams(written(10, 0.2, 0.201)).result == "ok"


def test_a_text_of_one_token_shows_nothing_about_streams() -> None:
    assert streams(written(1, 0.1, 0.1, num_tokens=1)).result == "failed"


async def test_a_model_that_writes_nothing_is_not_asked_for_more() -> None:
    found = await texts(subject(ScriptedBackend(says())))
    assert found["writes"].result == "no"
    asked_more = {found[name].result for name in ("streams", "stop_strings", "decode_logprobs")}
    assert asked_more == {"not_applicable"}


# Judges.


async def checks_of(backend: ScriptedBackend) -> UpstreamChecks:
    asked = Subject(upstream("teacher", backend), CALL, 5.0)
    fine = ok("")
    scoring = await ways(asked, 20, ok("of 24 tokens"))
    return UpstreamChecks(fine, fine, fine, fine, fine, fine, fine, fine, scoring)


def verdict(checks: UpstreamChecks, backend: ScriptedBackend, **params: Any) -> PairReport:
    model = ModelConfig(student="teacher", teacher="teacher", params=params)
    reports = {"teacher": UpstreamReport("litellm", None, "m", checks)}
    return judge_pair(model, reports, {"teacher": upstream("teacher", backend)})


def judge(scoring: Scoring = "judge_sample") -> ScriptedBackend:
    return ScriptedBackend(scoring=scoring, judge=lambda _, step: StepScore(0.5, None, len(step)))


async def test_a_judge_is_asked_for_no_candidates_and_not_self_tested() -> None:
    way = (await checks_of(judge())).scoring["judge_sample"]
    assert way.available.values == {"step_values": [0.5, 0.5]}
    assert (way.speed.result, way.self_test.result) == ("ok", "not_applicable")
    assert way.top_k.result == "not_applicable"


async def test_a_judge_needs_a_static_boundary_and_a_threshold_of_its_own() -> None:
    backend = judge()
    checks = await checks_of(backend)
    (reason,) = verdict(checks, backend).reasons
    assert "boundary must be 'static'" in reason
    (reason,) = verdict(checks, backend, boundary="static").reasons
    assert "base_threshold" in reason
    fit = verdict(checks, backend, boundary="static", base_threshold=0.4)
    assert (fit.can, fit.scoring, fit.notes) == (True, "judge_sample", ())


async def test_values_without_an_entropy_do_for_a_static_boundary_only() -> None:
    backend = judge("echo")
    backend.script, backend.decode_logprob = says("text"), -0.6931471805599453
    checks = await checks_of(backend)
    way = checks.scoring["echo"]
    assert (way.self_test.result, way.top_k.result) == ("ok", "no")
    assert way.top_k.values == {"wanted": 20, "most": 0}
    assert verdict(checks, backend).reasons == (
        "teacher 'teacher': entropy_top_k is 20, 0 candidates come; boundary: static would do",
    )
    assert verdict(checks, backend, boundary="static").can


async def test_skd_needs_a_student_that_tells_its_log_probabilities() -> None:
    checks = await checks_of(backend := ScriptedBackend(says("text"), decode_logprob=math.log(0.9)))
    reports = {name: UpstreamReport("vllm", None, "m", checks) for name in ("student", "teacher")}
    model = ModelConfig(student="student", teacher="teacher", params={"method": "skd"})
    both = {name: upstream(name, backend) for name in ("student", "teacher")}
    assert judge_pair(model, reports, both).can
    assert judge_pair(model, reports, both).scoring == "prompt_logprobs"
    both["student"].writes_logprobs = "no"
    (reason,) = judge_pair(model, reports, both).reasons
    assert "needs the student's log-probabilities" in reason


async def test_a_self_test_of_no_token_has_failed() -> None:
    checks = await checks_of(ScriptedBackend(says(), scoring="echo"))
    assert checks.scoring["echo"].self_test.result == "failed"
    assert not verdict(checks, ScriptedBackend(scoring="echo"), boundary="static").can


# Pairs.


@pytest.mark.parametrize("method", ["student", "teacher"])
def test_a_method_that_uses_one_model_needs_the_other_for_nothing(method: str) -> None:
    fine, silent = ok(""), not_applicable("")
    down = UpstreamChecks(no("down"), silent, silent, silent, silent, silent, silent, silent, {})
    up = UpstreamChecks(fine, fine, fine, fine, fine, fine, fine, fine, {})
    checks = {"student": down, "teacher": down} | {method: up}
    reports = {name: UpstreamReport("vllm", None, "m", one) for name, one in checks.items()}
    model = ModelConfig(student="student", teacher="teacher", params={"method": method})
    assert judge_pair(model, reports, {}).can
    both = ModelConfig(student="student", teacher="teacher")
    other = "teacher" if method == "student" else "student"
    assert judge_pair(both, reports, {}).reasons == (f"{other} '{other}': not reachable: down",)


def test_other_ids_than_the_servers_stand_against_a_pair() -> None:
    fine = ok("")
    checks = UpstreamChecks(fine, fine, fine, no("other ids"), fine, fine, fine, fine, {})
    reports = {"t": UpstreamReport("vllm", None, "m", checks)}
    model = ModelConfig(student="t", teacher="t", params={"method": "teacher"})
    assert judge_pair(model, reports, {}).reasons == ("teacher 't': tokenizer: other ids",)


# Thoughts.


@pytest.mark.parametrize(
    ("found", "text", "result", "kind"),
    [
        (Reasoning("think"), "<think>\nOne", "ok", "think"),
        (Reasoning("none"), "one, two", "ok", "none"),
        (Reasoning("none"), "\n<think>\nOne", "no", "think"),
        (Reasoning("none"), "<|channel|>analysis<|message|>One", "no", "harmony"),
        (Reasoning("none"), "a <think> in the middle", "ok", "none"),
    ],
)
async def test_thoughts_that_the_template_does_not_show_are_seen_in_the_text(
    found: Reasoning, text: str, result: str, kind: str
) -> None:
    backend = ScriptedBackend()
    asked = Subject(Upstream("t", backend, backend, (), 4, found), CALL, 5.0)
    check = await reasoning(asked, replace(written(2, 0.1, 0.2), text=text))
    assert (check.result, check.values) == (result, {"kind": kind})


class Refusing(ScriptedBackend):
    """Names its window in the refusal of a long text."""

    async def write(
        self, context: Context, sampling: Sampling, max_tokens: int, call: Call
    ) -> AsyncGenerator[Draft]:
        if max_tokens > 100:
            raise ContextExceeded("too much", window=100)
        yield Draft(("x",), "length")


async def test_a_window_that_only_a_refusal_names_is_learnt() -> None:
    asked = subject(Refusing())
    await learn_limits(asked)
    assert asked.upstream.budget.limits.context_tokens == 100


async def test_a_server_that_refuses_nothing_writes_one_piece() -> None:
    backend = Timed((0.0, 1.0))
    asked = subject(backend)
    await learn_limits(asked)
    assert asked.upstream.budget.limits.context_tokens is None
    assert backend.now == 0.0
