"""Checks what a request's and an upstream's variables do to the rendered question."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from proxy.backends.base import Message, Question, Segment
from proxy.backends.servers.llamacpp import LlamaCpp
from proxy.backends.servers.server_reader import ServerReader
from proxy.backends.tokens.chat_template import ChatTemplate
from proxy.core.thinking import Reasoning
from proxy.engine.model_context import Prompts
from proxy.engine.upstream import Upstream
from proxy.errors import ConfigError, RequestError
from proxy.wiring.models import open_service
from proxy.wiring.templates import ReadTemplate
from tests.support.paths import GOLDEN
from tests.support.replay import CALL, Replay, Seen, json_reply
from tests.support.scripted import ScriptedBackend
from tests.support.servers import llamacpp, sglang, vllm
from tests.support.servers.configured import one_upstream

QWEN3 = (GOLDEN / "templates" / "Qwen-Qwen3-0.6B.jinja").read_text("utf-8")
GPT_OSS = (GOLDEN / "templates" / "openai-gpt-oss-120b.jinja").read_text("utf-8")
FRAGILE = "{{ messages[0].content }}{% if n %}{{ 1 // n }}{% endif %}"
REFUSING = "{% if enable_thinking is defined %}{{ raise_exception('no') }}{% endif %}"
THINK, NONE = Reasoning("think"), Reasoning("none")
OFF: dict[str, Any] = {"enable_thinking": False}
ASKED = Question((Message("user", "1+1?"),))
EMPTY_THOUGHT = "<think>\n\n</think>\n\n"


class OneTemplate:
    """A reader of a template alone; one character is one token."""

    def __init__(self, source: str) -> None:
        self._template = ChatTemplate(source, {})
        self.num_rendered = 0

    async def render(self, question: Question, call: Any) -> Segment:
        del call
        self.num_rendered += 1
        text = self._template.render(question.messages, question.template_kwargs)
        return Segment(text, tuple(map(ord, text)))

    async def prompt_text(self, rendered: Segment, call: Any) -> str:
        del call
        return rendered.text

    async def encode_running(self, texts: Any, call: Any) -> list[list[Segment]]:
        raise NotImplementedError

    async def encode(self, texts: Any, call: Any) -> list[Segment]:
        raise NotImplementedError

    async def markup(self, text: str, call: Any) -> Segment:
        raise NotImplementedError


SERVERS: dict[str, tuple[str, Callable[[Replay], ServerReader | LlamaCpp]]] = {
    "vllm": ("/tokenize", vllm.backend),
    "sglang": (sglang.TOKENIZE, sglang.backend),
    "llamacpp": ("/apply-template", llamacpp.backend),
}


@pytest.mark.parametrize("kind", SERVERS)
async def test_a_server_s_own_template_gets_the_variables_that_there_are(
    up: Replay, kind: str
) -> None:
    path, make = SERVERS[kind]
    up.on("POST", path, json_reply({"tokens": [1], "prompt": "Q"}))
    if kind == "llamacpp":
        up.on("POST", "/tokenize", json_reply({"tokens": [1]}))
    reader = make(up)
    await reader.render(ASKED, CALL)
    await reader.render(replace(ASKED, template_kwargs=OFF), CALL)
    reader.template_kwargs = {"enable_thinking": True, "a": 1}
    await reader.render(ASKED, CALL)
    await reader.render(replace(ASKED, template_kwargs=OFF), CALL)
    sent = [body.get("chat_template_kwargs") for body in up.bodies(path)]
    assert sent == [
        None,
        OFF,
        {"enable_thinking": True, "a": 1},
        {"enable_thinking": False, "a": 1},
    ]


@pytest.mark.parametrize("kind", SERVERS)
async def test_a_template_of_the_configuration_gets_them_too(up: Replay, kind: str) -> None:
    path = SERVERS[kind][0] if kind != "llamacpp" else "/tokenize"
    up.on("POST", path, json_reply({"tokens": [1]}))
    makes: dict[str, Callable[[Replay, str], ServerReader | LlamaCpp]]
    makes = {"vllm": vllm.backend, "sglang": sglang.backend, "llamacpp": llamacpp.backend}
    reader = makes[kind](up, QWEN3)
    for kwargs, has_empty_thought in (({}, False), (OFF, True)):
        rendered = await reader.render(replace(ASKED, template_kwargs=kwargs), CALL)
        assert rendered.text.endswith(EMPTY_THOUGHT) is has_empty_thought


async def test_qwen3_thinks_unless_it_is_kept_from_it() -> None:
    template = ReadTemplate(OneTemplate(QWEN3), "auto")
    assert await template.reasoning({}) == THINK
    assert await template.reasoning(OFF) == NONE
    assert await template.reasoning({"enable_thinking": True}) == THINK


@pytest.mark.parametrize(
    ("configured", "usual", "switched_off"),
    [
        ("auto", THINK, NONE),
        ("think", THINK, NONE),
        ("none", NONE, NONE),
        ("harmony", Reasoning("harmony"), Reasoning("harmony")),
    ],
)
async def test_a_configured_format_holds_unless_the_variables_change_it(
    configured: Any, usual: Reasoning, switched_off: Reasoning
) -> None:
    template = ReadTemplate(OneTemplate(QWEN3), configured)
    assert await template.reasoning({}) == usual
    assert await template.reasoning(OFF) == switched_off
    assert await template.reasoning({"unused": 1}) == usual


async def test_a_configured_format_that_is_not_found_holds_under_other_variables() -> None:
    template = ReadTemplate(OneTemplate("{{ messages[0].content }}"), "think")
    assert await template.reasoning({}) == THINK
    assert await template.reasoning(OFF) == THINK


async def test_the_format_under_the_same_variables_is_found_once() -> None:
    reader = OneTemplate(QWEN3)
    template = ReadTemplate(reader, "auto")
    await template.reasoning({"enable_thinking": False, "a": 1})
    num_rendered = reader.num_rendered
    await template.reasoning({"a": 1, "enable_thinking": False})
    assert reader.num_rendered == num_rendered > 0


@pytest.mark.parametrize(
    ("source", "takes"),
    [(QWEN3, True), (GPT_OSS, True), (FRAGILE, False), (REFUSING, False)],
)
async def test_a_template_that_renders_efforts_alike_takes_none(source: str, takes: bool) -> None:
    assert await ReadTemplate(OneTemplate(source), "auto").takes_effort() is takes


async def test_gpt_oss_thinks_as_long_as_it_is_asked_to() -> None:
    reader = OneTemplate(GPT_OSS)
    question = replace(ASKED, template_kwargs={"reasoning_effort": "high"})
    assert "Reasoning: high" in (await reader.render(question, CALL)).text


@pytest.mark.parametrize(("kwargs", "fails"), [({"n": 0}, False), ({"n": "x"}, True)])
async def test_a_variable_that_breaks_the_template_is_the_request_s_fault(
    kwargs: dict[str, Any], fails: bool
) -> None:
    template = ChatTemplate(FRAGILE)
    if not fails:
        assert template.render(ASKED.messages, kwargs) == "1+1?"
        return
    with pytest.raises(RequestError, match="cannot render with these variables") as caught:
        template.render(ASKED.messages, kwargs)
    assert caught.value.param == "chat_template_kwargs"


async def test_messages_that_the_template_refuses_anyway_are_not_the_variables_fault() -> None:
    refusing = "{% if messages | length > 1 %}{{ raise_exception('one only') }}{% endif %}"
    with pytest.raises(RequestError, match="cannot render these messages: one only") as caught:
        ChatTemplate(refusing).render(ASKED.messages * 2, {"n": 1})
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    ("refuses_all", "param"), [(False, "chat_template_kwargs"), (True, "mess")]
)
async def test_a_server_that_refuses_a_variable_makes_it_the_request_s_fault(
    up: Replay, refuses_all: bool, param: str
) -> None:
    def reply(seen: Seen) -> Any:
        if refuses_all or "chat_template_kwargs" in seen.body:
            return json_reply({"error": {"message": "no such type", "code": 400}}, 400)
        return json_reply({"tokens": [1]})

    up.on("POST", "/tokenize", reply)
    upstream = Upstream("up", vllm.backend(up), ScriptedBackend(), (), 4)
    with pytest.raises(RequestError, match="no such type") as caught:
        await Prompts().of(upstream, replace(ASKED, template_kwargs={"a": 1}), CALL)
    assert str(caught.value.param).startswith(param)


def _server(up: Replay, refusing: str = "") -> None:
    """A vLLM server whose template renders thoughts as Qwen3's, and refuses one variable."""

    def tokenize(seen: Seen) -> Any:
        if "messages" not in seen.body:
            name = "alone" if seen.body["prompt"] == "q" else ""
            found = vllm.RECORDED.json(f"tokenize_follower{name and '_alone'}")
            return json_reply(found)
        kwargs = seen.body.get("chat_template_kwargs", {})
        if refusing in kwargs:
            return json_reply({"error": {"message": f"{refusing} is odd", "code": 400}}, 400)
        messages = tuple(Message(m["role"], m["content"]) for m in seen.body["messages"])
        text = ChatTemplate(QWEN3, {}).render(messages, kwargs)
        return json_reply({"tokens": list(map(ord, text))})

    up.on("POST", "/tokenize", tokenize)
    up.on("POST", "/detokenize", lambda seen: json_reply({"prompt": _text(seen.body["tokens"])}))
    up.on("GET", "/v1/models", json_reply({"data": [{"id": "smollm2"}]}))


def _text(tokens: list[int]) -> str:
    return "".join(map(chr, tokens))


@pytest.mark.parametrize(
    ("keys", "reasoning"),
    [
        ({}, THINK),
        ({"chat_template_kwargs": OFF}, NONE),
        ({"reasoning_effort": "none"}, NONE),
        ({"reasoning_effort": "high"}, THINK),
    ],
)
async def test_an_upstream_s_variables_decide_how_its_model_thinks(
    up: Replay, tmp_path: Path, keys: dict[str, Any], reasoning: Reasoning
) -> None:
    _server(up)
    async with open_service(one_upstream(up, tmp_path, "vllm", **keys)) as service:
        (upstream,) = service.upstreams()
        assert upstream.reasoning == reasoning
        rendered = _text(list((await upstream.reader.render(ASKED, CALL)).token_ids))
        assert rendered.endswith(EMPTY_THOUGHT) is (reasoning == NONE)


@pytest.mark.parametrize(
    ("keys", "refusing", "words"),
    [
        ({"chat_template_kwargs": {"odd": 1}}, "odd", r"\.chat_template_kwargs: .*odd is odd"),
        (
            {"chat_template": FRAGILE, "reasoning_effort": "low"},
            "",
            r"\.reasoning_effort: its chat template does not know it",
        ),
    ],
)
async def test_an_upstream_s_variables_that_its_template_refuses_end_the_start(
    up: Replay, tmp_path: Path, keys: dict[str, Any], refusing: str, words: str
) -> None:
    _server(up, refusing)
    with pytest.raises(ConfigError, match=words):
        async with open_service(one_upstream(up, tmp_path, "vllm", **keys)):
            pass
