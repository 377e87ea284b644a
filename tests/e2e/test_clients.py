"""Stock clients against `motab serve`, changed by nothing but the base URL."""

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.support.patience import PATIENCE_S
from tests.support.proxy.live import API_KEY

MODEL = "motab/demo"
MESSAGES: Any = [{"role": "user", "content": "Ann has 3 pens and buys 2 more. How many has she?"}]
SHORT: dict[str, Any] = {"max_tokens": 24, "temperature": 0.6, "seed": 1}
QUICK: dict[str, Any] = {"model": "student/student", "messages": MESSAGES, **SHORT}


# litellm leaves its connections open for good, so it gets a process of its own.
LITELLM_USER = """
import json, sys, litellm
settings = json.loads(sys.argv[1])
whole = litellm.completion(**settings)
parts = [c.choices[0].delta.content or "" for c in litellm.completion(**settings, stream=True)]
print(json.dumps([whole.choices[0].message.content, "".join(parts)]))
"""


@pytest.fixture
def client(base_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=base_url, api_key=API_KEY, max_retries=0) as client:
        yield client


@pytest.fixture
def async_client(base_url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=base_url, api_key=API_KEY, max_retries=0)


def assert_covered(choice: Any, text: str) -> None:
    end = 0
    for span in choice.motab["spans"]:
        assert span["start"] == end
        end = span["end"]
    assert end == len(text)


def test_openai_sync_completes_a_chat(client: openai.OpenAI) -> None:
    done = client.chat.completions.create(model=MODEL, messages=MESSAGES, **SHORT)
    (choice,) = done.choices
    assert choice.message.content
    assert choice.finish_reason in ("stop", "length")
    assert done.usage is not None
    assert done.usage.completion_tokens > 0
    assert_covered(choice, choice.message.content)


def test_openai_sync_streams_the_text_that_it_completes(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        **SHORT,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    last = [c for c in chunks if c.choices][-1].choices[0]
    assert last.finish_reason in ("stop", "length")
    assert_covered(last, text)
    assert chunks[-1].usage is not None
    assert chunks[-1].choices == []


async def test_openai_async_completes_three_choices(async_client: openai.AsyncOpenAI) -> None:
    async with async_client as client:
        done = await client.chat.completions.create(n=3, **QUICK)
    assert [choice.index for choice in done.choices] == [0, 1, 2]
    texts = {choice.message.content for choice in done.choices}
    assert len(texts) > 1, "each choice has a seed of its own"


async def test_openai_async_streams_three_choices(async_client: openai.AsyncOpenAI) -> None:
    ended = set()
    texts = {0: "", 1: "", 2: ""}
    async with async_client as client:
        async for chunk in await client.chat.completions.create(n=3, stream=True, **QUICK):
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
                if choice.finish_reason:
                    ended.add(choice.index)
    assert ended == {0, 1, 2}
    assert all(texts.values())


def test_openai_text_completions_take_a_raw_prompt(client: openai.OpenAI) -> None:
    done = client.completions.create(
        model="student/student", prompt="One, two, three,", max_tokens=4, temperature=0
    )
    assert "four" in done.choices[0].text
    assert done.usage is not None
    assert done.usage.completion_tokens == 4


def test_a_wrong_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt-9'"):
        client.chat.completions.create(model="gpt-9", messages=MESSAGES)


def test_a_wrong_field_is_named(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=MESSAGES, logit_bias={"5": 1})
    assert caught.value.param == "logit_bias"
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model=MODEL, messages=MESSAGES, extra_body={"motab": {"base_treshold": 0.1}}
        )
    assert caught.value.param == "motab.base_treshold"


def test_a_wrong_key_is_refused(base_url: str) -> None:
    with (
        openai.OpenAI(base_url=base_url, api_key="wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.models.list()


def test_models_are_listed_and_found(client: openai.OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert names == [MODEL, "student/student", "teacher/teacher"]
    assert client.models.retrieve(MODEL).id == MODEL


def test_litellm_completes_and_streams(base_url: str) -> None:
    settings: dict[str, Any] = {
        "model": "openai/student/student",
        "messages": MESSAGES,
        "api_base": base_url,
        "api_key": API_KEY,
        "max_tokens": 12,
        "temperature": 0,
    }
    done = subprocess.run(
        [sys.executable, "-c", LITELLM_USER, json.dumps(settings)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    whole, streamed = json.loads(done.stdout.splitlines()[-1])
    assert whole == streamed
    assert whole


def test_a_breach_streams_what_the_trace_says(base_url: str) -> None:
    # A boundary that nothing passes: the first step is the breach.
    body = {
        "model": MODEL,
        "messages": MESSAGES,
        **SHORT,
        "stream": True,
        "motab": {"base_threshold": 1.0, "entropy_scale": 0.0, "events": True, "trace": "full"},
    }
    text, names = "", []
    trace: dict[str, Any] = {}
    with httpx.stream(
        "POST",
        f"{base_url}/chat/completions",
        json=body,
        headers={"authorization": f"Bearer {API_KEY}"},
        timeout=PATIENCE_S,
    ) as response:
        for line in response.iter_lines():
            if line.startswith("event:"):
                names.append(line[6:].strip())
            elif line.startswith("data: {"):
                data = json.loads(line[6:])
                for choice in data.get("choices", []):
                    text += choice["delta"].get("content", "")
                    trace = choice.get("motab", trace)
    assert names == ["motab.step", "motab.breach"]
    assert (trace["breach"], trace["bifurcation"]) == (0, 0)
    by_role = {span["role"]: text[span["start"] : span["end"]] for span in trace["spans"]}
    assert list(by_role) == ["flawed", "revise", "teacher"]
    assert by_role["revise"].strip() == "However,"
    assert by_role["flawed"] == text[: trace["steps"][0]["end"]]


def test_the_score_route_judges_a_given_text(base_url: str) -> None:
    body = {"model": MODEL, "messages": MESSAGES, "text": "She has 3.\n\nThe answer is 5."}
    answer = httpx.post(
        f"{base_url}/motab/score",
        json=body,
        headers={"authorization": f"Bearer {API_KEY}"},
        timeout=PATIENCE_S,
    ).json()
    assert [(s["start"], s["end"]) for s in answer["steps"]] == [(0, 12), (12, 28)]
    assert all(0 <= step["value"] <= 1 for step in answer["steps"])
    assert all(step["entropy"] > 0 for step in answer["steps"])
