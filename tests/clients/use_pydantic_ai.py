"""Asks with pydantic-ai's agent."""

import asyncio
from typing import Any

from pydantic_ai import Agent
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from tests.clients.ways import (
    API_KEY,
    BASE_URL,
    MODEL,
    QUESTIONS,
    SHORT,
    WAIT,
    Answer,
    Sum,
    refusal,
    report,
)

model = OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=BASE_URL, api_key=API_KEY))


async def streamed(agent: Any) -> Answer:
    async with agent.run_stream(QUESTIONS[0]) as answer:
        return Answer(await answer.get_output())


def main() -> None:
    agent: Any = Agent(model)
    structured: Any = Agent(model, output_type=Sum)
    first = agent.run_sync(QUESTIONS[0])
    *_, said = first.all_messages()
    assert said.provider_response_id.startswith("chatcmpl-")
    cut = agent.run_sync(QUESTIONS[0], model_settings={"extra_body": {"motab": SHORT}})
    waits = agent.run_sync(QUESTIONS[0], model_settings={"extra_body": {"motab": WAIT}})
    again = agent.run_sync(QUESTIONS[1], message_history=cut.all_messages())
    report(
        "pydantic-ai-slim",
        {
            "run": Answer(first.output, said.provider_details.get("motab")),
            "`motab` params": Answer(waits.output),
            "run_stream": asyncio.run(streamed(agent)),
            "answer sent back": Answer(again.output),
        },
        {
            "output_type": refusal(
                "tools", ModelHTTPError, lambda: structured.run_sync(QUESTIONS[0])
            )
        },
    )


if __name__ == "__main__":
    main()
