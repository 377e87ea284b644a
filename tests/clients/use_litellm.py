"""Asks with litellm's functions, by the prefix `openai/`."""

import asyncio
from typing import Any

import litellm

from tests.clients.ways import (
    API_KEY,
    BASE_URL,
    MESSAGES,
    MODEL,
    QUESTIONS,
    SHORT,
    WAIT,
    Answer,
    report,
)

ASK: dict[str, Any] = {"model": f"openai/{MODEL}", "api_base": BASE_URL, "api_key": API_KEY}
CHAT: dict[str, Any] = {**ASK, "messages": list(MESSAGES)}


def answer_of(done: Any) -> Answer:
    (choice,) = done.choices
    return Answer(choice.message.content, choice.provider_specific_fields["motab"])


def streamed() -> Answer:
    choices = [chunk.choices[0] for chunk in litellm.completion(**CHAT, stream=True)]
    assert choices[-1].finish_reason
    kept = [getattr(choice, "motab", None) for choice in choices]
    return Answer("".join(choice.delta.content or "" for choice in choices), kept[-1])


def answer_sent_back() -> Answer:
    said = litellm.completion(**CHAT, extra_body={"motab": SHORT}).choices[0].message
    turns = [*MESSAGES, said.model_dump(), {"role": "user", "content": QUESTIONS[1]}]
    return answer_of(litellm.completion(**{**CHAT, "messages": turns}))


def batch() -> Answer:
    rows = [[{"role": "user", "content": question}] for question in QUESTIONS]
    return [answer_of(done) for done in litellm.batch_completion(**{**CHAT, "messages": rows})][-1]


def text() -> Answer:
    (choice,) = litellm.text_completion(**ASK, prompt=QUESTIONS[0]).choices
    return Answer(choice.text, choice.motab)


def main() -> None:
    report(
        "litellm",
        {
            "completion": answer_of(litellm.completion(**CHAT)),
            "`motab` params": answer_of(litellm.completion(**CHAT, extra_body={"motab": WAIT})),
            "stream": streamed(),
            "acompletion": answer_of(asyncio.run(litellm.acompletion(**CHAT))),
            "batch_completion": batch(),
            "answer sent back": answer_sent_back(),
            "text_completion": text(),
        },
    )


if __name__ == "__main__":
    main()
