"""litellm against a real HTTP server, through its provider for vLLM and its one for OpenAI."""

import asyncio
import importlib
import math
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest

from proxy.backends.base import Context, Draft, Message, Question, Sampling, Segment
from proxy.backends.judges.judge import JudgeLogprob, JudgeSample
from proxy.backends.judges.openai_chat import OpenAIChatAsker
from proxy.backends.servers.litellm import CONTINUE_PROMPT, HostedModel, LiteLLM
from proxy.backends.servers.litellm_library import load_library
from proxy.backends.transport.calls import NO_TIMEOUTS, Calls, Timeouts
from proxy.backends.transport.retry import NO_RETRIES, RetryPolicy
from proxy.errors import (
    ConfigError,
    ContextExceeded,
    MotabError,
    RequestError,
    UnsupportedField,
    UpstreamFailed,
    UpstreamMalformed,
    UpstreamRefused,
    UpstreamUnreachable,
)
from tests.support.replay import (
    CALL,
    GREEDY,
    Recording,
    Replay,
    Reply,
    json_reply,
    stream_reply,
)
from tests.support.scripted import ScriptedBackend

# litellm's own, with the pydantic of today.
pytestmark = pytest.mark.filterwarnings("ignore:Accessing the 'model_(computed_)?fields'")

VLLM = Recording("vllm-0.32.0")
CHAT = "/v1/chat/completions"
QUESTION = Question((Message("user", "What is 12 + 30? Answer in one sentence."),))
HOSTED_VLLM, OPENAI = "hosted_vllm/smollm2", "openai/smollm2"
STEP = "To find the sum we add the two numbers.\n\n"


class Hosted:
    """Makes hosted models of the scripted server, and closes litellm's connections."""

    def __init__(self, up: Replay) -> None:
        self._up = up
        self._library = load_library()

    def __call__(
        self,
        model: str = HOSTED_VLLM,
        retry: RetryPolicy = NO_RETRIES,
        *,
        base_url: str | None = None,
        lists_models: bool = True,
        timeouts: Timeouts = NO_TIMEOUTS,
        **how: Any,
    ) -> LiteLLM:
        up = self._up
        calls = Calls(
            "up",
            lambda *event: up.observed.append(event),
            retry,
            lambda *event: up.retried.append(event),
            timeouts,
        )
        hosted = HostedModel(model, "secret", base_url or f"{up.client.base_url}/v1", **how)
        models = up.client if lists_models else None
        return LiteLLM(self._library, calls, models, hosted, ScriptedBackend())

    async def aclose(self) -> None:
        await self._library.close_litellm_async_clients()


@pytest.fixture
async def hosted(up: Replay) -> AsyncIterator[Hosted]:
    hosting = Hosted(up)
    async with aclosing(hosting):
        yield hosting


def context(*steps: str, question: Question = QUESTION) -> Context:
    segments = [Segment(text, tuple(map(ord, text))) for text in steps]
    return Context(Segment("", (1,)), segments, question=question)


async def drafts_of(
    backend: LiteLLM, written: Context, sampling: Sampling = GREEDY, max_tokens: int = 60
) -> list[Draft]:
    return [draft async for draft in backend.write(written, sampling, max_tokens, CALL)]


def text_of(drafts: list[Draft]) -> str:
    return "".join(piece for draft in drafts for piece in draft.pieces)


def chunk(delta: str, finish: str = "null") -> bytes:
    head = '"id":"c","object":"chat.completion.chunk","created":1,"model":"m"'
    choice = f'{{"index":0,"delta":{delta},"finish_reason":{finish}}}'
    return f'data: {{{head},"choices":[{choice}]}}\n\n'.encode()


DONE = b"data: [DONE]\n\n"


# Writing.


@pytest.mark.parametrize("model", [HOSTED_VLLM, OPENAI])
@pytest.mark.parametrize(
    ("name", "sampling", "max_tokens", "text", "end"),
    [
        ("chat_stop", GREEDY, 60, "12 + 30 = 32.", "stop"),
        ("chat_stop_string", Sampling(0.0, stop=("32",)), 60, "12 + 30 = ", "stop"),
        ("chat_length", Sampling(0.7, 0.9, 7), 8, "I'm sorry for your pain, but", "length"),
    ],
)
async def test_a_student_writes_from_the_bare_question(
    up: Replay,
    hosted: Hosted,
    model: str,
    name: str,
    sampling: Sampling,
    max_tokens: int,
    text: str,
    end: str,
) -> None:
    up.on("POST", CHAT, stream_reply(VLLM.body(name)))
    drafts = await drafts_of(hosted(model), context(), sampling, max_tokens)
    assert up.bodies(CHAT) == [VLLM.request(name)]
    assert text_of(drafts) == text
    assert drafts[-1] == Draft((), end, 0)  # type: ignore[arg-type]
    assert all(draft.end is None for draft in drafts[:-1])
    assert up.seen[0].headers["authorization"] == "Bearer secret"
    assert up.seen[0].headers["x-session-id"] == CALL.session_id


async def test_pieces_are_counted_by_the_reader(up: Replay, hosted: Hosted) -> None:
    up.on("POST", CHAT, stream_reply(VLLM.body("chat_stop")))
    drafts = await drafts_of(hosted(), context())
    assert sum(len(draft.pieces) for draft in drafts) == len("12 + 30 = 32.")


async def test_a_longer_answer_comes_whole_and_piece_by_piece(up: Replay, hosted: Hosted) -> None:
    up.on("POST", CHAT, stream_reply(VLLM.body("chat_paragraphs")))
    drafts = await drafts_of(hosted(), context())
    deltas = [e["choices"][0]["delta"] for e in VLLM.events("chat_paragraphs") if e["choices"]]
    assert text_of(drafts) == "".join(delta.get("content") or "" for delta in deltas)
    assert len(drafts) > 80


async def test_vllm_continues_the_answer_and_the_seam_has_no_space_twice(
    up: Replay, hosted: Hosted
) -> None:
    up.on("POST", CHAT, stream_reply(VLLM.body("chat_continued")))
    drafts = await drafts_of(hosted(), context(STEP, "12 + 30 =\n\n"), max_tokens=30)
    assert up.bodies(CHAT) == [VLLM.request("chat_continued")]
    assert text_of(drafts) == "32"  # " 32" came


async def test_a_model_that_is_told_to_continue_sees_the_text_and_the_words(
    up: Replay, hosted: Hosted
) -> None:
    up.on("POST", CHAT, stream_reply(VLLM.body("chat_instructed")))
    await drafts_of(hosted(continuation="instruct"), context(STEP), max_tokens=30)
    assert up.bodies(CHAT) == [VLLM.request("chat_instructed")]
    assert up.bodies(CHAT)[0]["messages"][-1] == {"role": "user", "content": CONTINUE_PROMPT}


async def test_a_prefilled_answer_is_marked_as_one(up: Replay, hosted: Hosted) -> None:
    up.on("POST", CHAT, stream_reply(VLLM.body("chat_continued")))
    await drafts_of(hosted(OPENAI, continuation="prefill"), context(STEP))
    begun = {"role": "assistant", "content": STEP.rstrip(), "prefix": True}
    assert up.bodies(CHAT)[0]["messages"][1:] == [begun]


@pytest.mark.parametrize(
    ("model", "continuation"),
    [
        (HOSTED_VLLM, "continue_final_message"),
        ("anthropic/claude-sonnet-4-5", "prefill"),
        ("deepseek/deepseek-chat", "prefill"),
        ("openrouter/openai/gpt-oss-120b", None),
        (OPENAI, None),
    ],
)
async def test_litellms_list_of_models_says_how_some_continue(
    hosted: Hosted, model: str, continuation: str | None
) -> None:
    assert hosted(model).continuation == continuation


async def test_a_model_of_which_nobody_says_how_it_continues_is_not_asked_to(
    up: Replay, hosted: Hosted
) -> None:
    with pytest.raises(RequestError, match="cannot continue a text: set `continuation`"):
        await drafts_of(hosted(OPENAI), context(STEP))
    assert up.seen == []


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
@pytest.mark.parametrize("model", [HOSTED_VLLM, OPENAI])
async def test_thoughts_that_are_sent_apart_are_text_in_think_tags(
    up: Replay, hosted: Hosted, model: str, field: str
) -> None:
    chunks = (
        chunk('{"role":"assistant","content":""}'),
        chunk(f'{{"{field}":"Is it"}}'),
        chunk(f'{{"{field}":" 42?"}}'),
        chunk('{"content":"It is."}'),
        chunk("{}", '"stop"'),
        DONE,
    )
    up.on("POST", CHAT, stream_reply(*chunks))
    assert text_of(await drafts_of(hosted(model), context())) == (
        "<think>\nIs it 42?\n</think>\n\nIt is."
    )
    assert text_of(await drafts_of(hosted(model, keep_reasoning=False), context())) == "It is."


async def test_a_text_that_repeats_itself_is_not_cut_off(up: Replay, hosted: Hosted) -> None:
    chunks = [chunk('{"content":" again"}')] * 300
    up.on("POST", CHAT, stream_reply(*chunks, chunk("{}", '"stop"'), DONE))
    assert text_of(await drafts_of(hosted(), context())) == " again" * 300


async def test_a_chat_api_gives_no_log_probabilities_while_it_writes(hosted: Hosted) -> None:
    with pytest.raises(UpstreamRefused, match="log-probability"):
        await hosted().decode(context(), 4, CALL)


# Streams that fail.


@pytest.mark.parametrize("model", [HOSTED_VLLM, OPENAI])
@pytest.mark.parametrize("drops", [True, False])
async def test_a_stream_that_ends_before_its_end_is_an_error_and_no_answer(
    up: Replay, hosted: Hosted, model: str, drops: bool
) -> None:
    begun = (chunk('{"content":"12 "}'), chunk('{"content":"+ 30"}'))
    up.on("POST", CHAT, stream_reply(*begun, drop_after=2 if drops else None))
    with pytest.raises(UpstreamUnreachable, match="upstream 'up'"):
        await drafts_of(hosted(model), context())
    assert [code for *_, code in up.observed] == ["upstream_unreachable"]


@pytest.mark.parametrize("model", [HOSTED_VLLM, OPENAI])
async def test_an_error_inside_a_stream_is_an_error(up: Replay, hosted: Hosted, model: str) -> None:
    fault = b'data: {"error":{"message":"EngineDead","type":"InternalServerError","code":500}}\n\n'
    up.on("POST", CHAT, stream_reply(chunk('{"content":"12 "}'), fault, DONE))
    with pytest.raises(UpstreamFailed, match="EngineDead"):
        await drafts_of(hosted(model), context())


async def test_a_withheld_answer_is_no_answer(up: Replay, hosted: Hosted) -> None:
    up.on("POST", CHAT, stream_reply(chunk("{}", '"content_filter"'), DONE))
    with pytest.raises(UpstreamMalformed, match="content_filter"):
        await drafts_of(hosted(), context())


@pytest.mark.parametrize(
    ("reply", "timeouts"),
    [
        (stream_reply(chunk('{"content":"12 "}'), hold=True), Timeouts(answer_s=60, stall_s=0.1)),
        (stream_reply(hold=True), Timeouts(answer_s=0.1, stall_s=60)),
        (Reply(after=asyncio.Event()), Timeouts(answer_s=0.1, stall_s=60)),
    ],
)
async def test_a_silent_server_counts_as_unreachable(
    up: Replay, hosted: Hosted, reply: Reply, timeouts: Timeouts
) -> None:
    up.on("POST", CHAT, reply)
    async with asyncio.timeout(5):
        with pytest.raises(UpstreamUnreachable, match=r"it was silent for 0\.1 s"):
            await drafts_of(hosted(timeouts=timeouts), context())
        await up.left.wait()


@pytest.mark.parametrize("model", [HOSTED_VLLM, OPENAI])
async def test_closing_a_stream_closes_the_connection(
    up: Replay, hosted: Hosted, model: str
) -> None:
    up.on("POST", CHAT, stream_reply(chunk('{"content":"12 "}'), hold=True))
    async with (
        asyncio.timeout(5),
        aclosing(hosted(model).write(context(), GREEDY, 60, CALL)) as drafts,
    ):
        async for _ in drafts:
            break
    async with asyncio.timeout(5):
        await up.left.wait()
    assert [code for *_, code in up.observed] == ["cancelled"]


@pytest.mark.parametrize("model", [HOSTED_VLLM, OPENAI])
@pytest.mark.parametrize("how", ["write", "ask"])
async def test_cancelling_a_waiting_call_closes_the_connection(
    up: Replay, hosted: Hosted, model: str, how: str
) -> None:
    up.on("POST", CHAT, Reply(after=asyncio.Event()))
    backend = hosted(model)
    waiting = backend.ask("Q", 1, None, CALL) if how == "ask" else drafts_of(backend, context())
    task = asyncio.ensure_future(waiting)
    async with asyncio.timeout(5):
        await up.came.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await up.left.wait()
    assert [code for *_, code in up.observed] == ["cancelled"]


# Refusals and retries.


def failing(status: int, message: str = "sorry", **headers: str) -> Reply:
    body = b'{"error":{"message":"%s","type":"t","code":%d}}' % (message.encode(), status)
    return Reply((body,), status, {"content-type": "application/json", **headers})


@pytest.mark.parametrize("model", [HOSTED_VLLM, OPENAI])
@pytest.mark.parametrize(
    ("reply", "fault"),
    [
        (json_reply(VLLM.body("chat_unknown_model"), 404), UpstreamRefused),
        (json_reply(VLLM.body("chat_top_logprobs_refused"), 400), UpstreamRefused),
        (json_reply(VLLM.body("chat_too_long"), 400), ContextExceeded),
        (failing(401), UpstreamRefused),
        (failing(403), UpstreamRefused),
        (failing(422), UpstreamRefused),
        (failing(429), UpstreamFailed),
        (failing(500), UpstreamFailed),
        (failing(502), UpstreamFailed),
        (failing(503), UpstreamFailed),
        (Reply(drop_after=0), UpstreamUnreachable),
    ],
)
@pytest.mark.parametrize("how", ["write", "ask"])
async def test_litellms_errors_become_ours_with_the_servers_words(
    up: Replay, hosted: Hosted, model: str, reply: Reply, fault: type[MotabError], how: str
) -> None:
    up.on("POST", CHAT, reply)
    backend = hosted(model)
    with pytest.raises(MotabError) as caught:
        await (backend.ask("Q", 1, None, CALL) if how == "ask" else drafts_of(backend, context()))
    assert type(caught.value) is fault
    assert "\n" not in str(caught.value)
    assert "upstream 'up'" in str(caught.value)
    assert len(up.seen) == 1
    assert [(name, path, code) for name, path, _, code in up.observed] == [
        ("up", "/chat/completions", fault.code)
    ]


async def test_a_server_that_is_not_there_is_unreachable(hosted: Hosted) -> None:
    for model in (HOSTED_VLLM, OPENAI):
        with pytest.raises(UpstreamUnreachable):
            await hosted(model, base_url="http://127.0.0.1:1/v1").ask("Q", 1, None, CALL)


@pytest.mark.parametrize("model", [HOSTED_VLLM, OPENAI])
@pytest.mark.parametrize("how", ["write", "ask"])
async def test_only_our_own_policy_retries_and_it_waits_as_the_server_wishes(
    up: Replay, hosted: Hosted, model: str, how: str
) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    content = VLLM.body("chat_stop")
    last = json_reply(VLLM.body("chat_digit")) if how == "ask" else stream_reply(content)
    up.on("POST", CHAT, failing(429, **{"retry-after": "7"}), failing(503), last)
    backend = hosted(model, RetryPolicy(3, 60.0, first_s=0.0, sleep=sleep))
    await (backend.ask("Q", 1, None, CALL) if how == "ask" else drafts_of(backend, context()))
    assert waits == [7.0, 0.0]
    assert up.retried == [("up", "upstream_failed")] * 2
    assert [code for *_, code in up.observed] == ["upstream_failed", "upstream_failed", "ok"]


async def test_a_parameter_that_the_model_does_not_take_is_refused_by_name(
    up: Replay, hosted: Hosted
) -> None:
    with pytest.raises(UnsupportedField, match="temperature"):
        await drafts_of(hosted("openai/o3"), context(), Sampling(0.5))
    assert up.seen == []


async def test_a_model_without_temperature_0_is_asked_at_its_own(
    up: Replay, hosted: Hosted
) -> None:
    up.on("POST", CHAT, json_reply(VLLM.body("chat_digit")))
    await hosted("openai/o3").ask("Q", 8, None, CALL)
    await hosted(OPENAI).ask("Q", 8, None, CALL)
    assert "temperature" not in up.bodies(CHAT)[0]
    assert up.bodies(CHAT)[1]["temperature"] == 0.0


# Judging.


def digits_value() -> float:
    """Of the recorded candidates, taken apart here."""
    top = VLLM.json("chat_digit_logprobs")["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    digits = [(int(x["token"]), math.exp(x["logprob"])) for x in top if x["token"].isdigit()]
    return sum(d * p for d, p in digits) / sum(p for _, p in digits) / 9


@pytest.mark.parametrize("model", [HOSTED_VLLM, OPENAI])
async def test_litellm_brings_the_candidates_of_the_first_token(
    up: Replay, hosted: Hosted, model: str
) -> None:
    up.on("POST", CHAT, json_reply(VLLM.body("chat_digit_logprobs")))
    judge = JudgeLogprob(hosted(model), 20)
    scores = await judge.score(context(STEP), 1, 20, CALL, entropy_known=False)
    assert scores.steps[0].value == pytest.approx(digits_value())
    assert scores.steps[0].value == pytest.approx(0.40352, abs=1e-5)
    assert scores.num_cached_tokens == VLLM.json("chat_digit_logprobs")["usage"][
        "prompt_tokens_details"
    ].get("cached_tokens")
    sent = up.bodies(CHAT)[0]
    assert (sent["max_tokens"], sent["logprobs"], sent["top_logprobs"]) == (1, True, 20)


@pytest.mark.parametrize("model", [HOSTED_VLLM, OPENAI])
async def test_litellm_brings_the_sampled_mark(up: Replay, hosted: Hosted, model: str) -> None:
    up.on("POST", CHAT, json_reply(VLLM.body("chat_digit")))
    judge = JudgeSample(hosted(model))
    scores = await judge.score(context(STEP), 1, 20, CALL, entropy_known=False)
    assert scores.steps[0].value == 1 / 9
    assert "logprobs" not in up.bodies(CHAT)[0]


async def test_the_same_judges_ask_any_openai_compatible_server(up: Replay) -> None:
    asker = OpenAIChatAsker(up.client, "smollm2")
    up.on("POST", CHAT, json_reply(VLLM.body("chat_digit_logprobs")))
    scores = await JudgeLogprob(asker, 20).score(context(STEP), 1, 20, CALL, entropy_known=False)
    assert scores.steps[0].value == pytest.approx(digits_value())
    up.on("POST", CHAT, json_reply(VLLM.body("chat_digit")))
    scores = await JudgeSample(asker).score(context(STEP), 1, 20, CALL, entropy_known=False)
    assert scores.steps[0].value == 1 / 9
    first, second = up.bodies(CHAT)
    assert set(first) - set(second) == {"logprobs", "top_logprobs"}


@pytest.mark.parametrize("kind", ["litellm", "openai"])
async def test_a_model_too_weak_to_mark_gives_no_score(
    up: Replay, hosted: Hosted, kind: str
) -> None:
    asker = hosted() if kind == "litellm" else OpenAIChatAsker(up.client, "smollm2")
    up.on("POST", CHAT, json_reply(VLLM.body("chat_no_digit_logprobs")))
    with pytest.raises(UpstreamMalformed, match=r"digits have probability 0\.196 only"):
        await JudgeLogprob(asker, 20).score(context(STEP), 1, 20, CALL, entropy_known=False)
    up.on("POST", CHAT, json_reply(VLLM.body("chat_no_digit")))
    with pytest.raises(UpstreamMalformed, match="last line is not a digit"):
        await JudgeSample(asker).score(context(STEP), 1, 20, CALL, entropy_known=False)


async def test_connecting_finds_out_what_the_model_can_be(up: Replay, hosted: Hosted) -> None:
    up.on("POST", CHAT, json_reply(VLLM.body("chat_digit_logprobs")))
    backend = hosted()
    await backend.connect(scores=True)
    assert [judge.scoring for judge in backend.scorers] == ["judge_logprob", "judge_sample"]


async def test_connecting_tells_what_will_be_inexact(
    up: Replay, hosted: Hosted, caplog: pytest.LogCaptureFixture
) -> None:
    up.on("POST", CHAT, json_reply(VLLM.body("chat_digit_logprobs")))
    await hosted("openai/o3", continuation="instruct").connect(scores=True)
    assert "continues texts by an instruction in words" in caplog.text
    assert "refuses temperature 0" in caplog.text


# Whether it is there.


async def test_an_api_with_a_base_url_is_asked_for_its_models(up: Replay, hosted: Hosted) -> None:
    up.on("GET", "/models", json_reply({"data": []}))
    await hosted().check()
    up.on("GET", "/models", json_reply({}, 404))
    await hosted().check()
    up.on("GET", "/models", json_reply({}, 503))
    with pytest.raises(UpstreamFailed):
        await hosted().check()
    assert up.bodies(CHAT) == []


async def test_another_api_is_asked_only_after_a_call_that_failed(
    up: Replay, hosted: Hosted
) -> None:
    good = json_reply(VLLM.body("chat_digit"))
    backend = hosted(lists_models=False)
    await backend.check()
    assert up.seen == []
    up.on("POST", CHAT, failing(503), failing(503), good)
    for attempt in (backend.ask("Q", 1, None, CALL), backend.check()):
        with pytest.raises(UpstreamFailed):
            await attempt
    await backend.check()
    await backend.check()
    assert [seen.body["max_tokens"] for seen in up.seen] == [1, 1, 1]


# The library.


async def test_an_unknown_provider_is_told_in_one_line(hosted: Hosted) -> None:
    with pytest.raises(UpstreamRefused, match="LLM Provider NOT provided") as refusal:
        hosted("nonsense")
    assert "\n" not in str(refusal.value)


def test_without_the_library_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def missing(name: str, package: str | None = None) -> Any:
        if name.startswith("litellm"):
            raise ModuleNotFoundError(name)
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ConfigError, match=r"pip install 'motab\[litellm\]'"):
        load_library()
