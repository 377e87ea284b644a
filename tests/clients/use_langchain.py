"""Asks with langchain-openai's chat model and its text model."""

from langchain_openai import ChatOpenAI, OpenAI
from openai import BadRequestError

from tests.clients.ways import (
    API_KEY,
    BASE_URL,
    MODEL,
    QUESTIONS,
    SHORT,
    STUDENT,
    WAIT,
    Answer,
    Sum,
    refusal,
    report,
)

ASK = {"model": MODEL, "base_url": BASE_URL, "api_key": API_KEY}


def main() -> None:
    chat, text = ChatOpenAI(**ASK), OpenAI(**ASK)
    waits = ChatOpenAI(**ASK, extra_body={"motab": WAIT})
    said = chat.invoke(QUESTIONS[0])
    cut = ChatOpenAI(**ASK, extra_body={"motab": SHORT}).invoke(QUESTIONS[0])
    assert said.response_metadata["id"].startswith("chatcmpl-")
    assert said.response_metadata["token_usage"]["motab"]["student_calls"] >= 1
    turns = [("user", QUESTIONS[0]), cut, ("user", QUESTIONS[1])]
    structured = chat.with_structured_output(Sum)
    alone = ChatOpenAI(**{**ASK, "model": STUDENT}).with_structured_output(Sum)
    assert isinstance(alone.invoke(QUESTIONS[0]), Sum)
    report(
        "langchain-openai",
        {
            "invoke": Answer(said.text, said.response_metadata.get("motab")),
            "`motab` params": Answer(waits.invoke(QUESTIONS[0]).text),
            "stream": Answer("".join(chunk.text for chunk in chat.stream(QUESTIONS[0]))),
            "batch": Answer(chat.batch(list(QUESTIONS))[-1].text),
            "answer sent back": Answer(chat.invoke(turns).text),
            "text model": Answer(text.invoke(QUESTIONS[0])),
            "text model's batch": Answer(text.batch(list(QUESTIONS))[-1]),
        },
        {
            "with_structured_output": refusal(
                "response_format", BadRequestError, lambda: structured.invoke(QUESTIONS[0])
            )
        },
    )


if __name__ == "__main__":
    main()
