"""Asks with openai's own client, in every way that it has for text."""

import asyncio
from typing import Any

from openai import AsyncOpenAI, BadRequestError, NotFoundError, OpenAI

from tests.clients import ways

CHAT: Any = {"model": ways.MODEL, "messages": ways.MESSAGES}
client = OpenAI(base_url=ways.BASE_URL, api_key=ways.API_KEY)


def chat(**more: Any) -> ways.Answer:
    choice: Any = client.chat.completions.create(**CHAT, **more).choices[0]
    return ways.Answer(choice.message.content, choice.motab)


def streamed() -> ways.Answer:
    chunks: list[Any] = list(client.chat.completions.create(**CHAT, stream=True))
    choices = [choice for chunk in chunks for choice in chunk.choices]
    text = "".join(choice.delta.content or "" for choice in choices)
    return ways.Answer(text, choices[-1].motab)


def stream_helper() -> ways.Answer:
    with client.chat.completions.stream(**CHAT) as stream:
        chunks: list[Any] = [event.chunk for event in stream if event.type == "chunk"]
        text = stream.get_final_completion().choices[0].message.content
    return ways.Answer(text or "", chunks[-1].choices[0].motab)


def parse() -> ways.Answer:
    choice: Any = client.chat.completions.parse(**CHAT).choices[0]
    return ways.Answer(choice.message.content, choice.motab)


def parse_as_schema() -> ways.Answer:
    asked = {**CHAT, "model": ways.STUDENT}
    choice: Any = client.chat.completions.parse(**asked, response_format=ways.Sum).choices[0]
    assert isinstance(choice.message.parsed, ways.Sum)
    return ways.Answer(choice.message.content)


def answer_sent_back() -> ways.Answer:
    cut = client.chat.completions.create(**CHAT, extra_body={"motab": ways.SHORT})
    said = cut.choices[0].message
    turns: Any = [*ways.MESSAGES, said.model_dump(), {"role": "user", "content": ways.QUESTIONS[1]}]
    choice: Any = client.chat.completions.create(model=ways.MODEL, messages=turns).choices[0]
    return ways.Answer(choice.message.content, choice.motab)


def completions(prompt: Any) -> ways.Answer:
    choices: list[Any] = client.completions.create(model=ways.MODEL, prompt=prompt).choices
    assert [choice.index for choice in choices] == list(range(len(choices)))
    return ways.Answer(choices[-1].text, choices[-1].motab)


async def at_once() -> ways.Answer:
    async with AsyncOpenAI(base_url=ways.BASE_URL, api_key=ways.API_KEY) as many:
        done = await asyncio.gather(*(many.chat.completions.create(**CHAT, n=2) for _ in range(3)))
    choices: list[Any] = [choice for one in done for choice in one.choices]
    assert [choice.index for choice in choices] == [0, 1] * 3
    return ways.Answer(choices[-1].message.content, choices[-1].motab)


def main() -> None:
    assert ways.MODEL in {model.id for model in client.models.list()}
    ways.report(
        "openai",
        {
            "chat": chat(),
            "`motab` params": chat(extra_body={"motab": ways.WAIT}),
            "stream": streamed(),
            "stream helper": stream_helper(),
            "parse as text": parse(),
            "a schema of `student/`": parse_as_schema(),
            "async with `n`": asyncio.run(at_once()),
            "answer sent back": answer_sent_back(),
            "completions": completions(ways.QUESTIONS[0]),
            "completions of a list": completions(list(ways.QUESTIONS)),
        },
        {
            "a schema": ways.refusal(
                "response_format",
                BadRequestError,
                lambda: client.chat.completions.parse(**CHAT, response_format=ways.Sum),
            ),
            "responses": ways.refusal(
                "/v1/chat/completions",
                NotFoundError,
                lambda: client.responses.create(model=ways.MODEL, input=ways.QUESTIONS[0]),
            ),
        },
    )


if __name__ == "__main__":
    main()
