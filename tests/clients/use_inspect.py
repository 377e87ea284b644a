"""Evaluates a task with inspect-ai, by its provider of OpenAI-compatible servers."""

from typing import Any

import inspect_ai
from inspect_ai import Task
from inspect_ai.dataset import Sample
from inspect_ai.model import GenerateConfig
from inspect_ai.scorer import includes
from inspect_ai.solver import generate

from tests.clients.ways import API_KEY, BASE_URL, MODEL, QUESTIONS, WAIT, Answer, report


def evaluated(model: str, config: GenerateConfig | None = None, **more: Any) -> Answer:
    task = Task(
        dataset=[Sample(input=question, target="3") for question in QUESTIONS],
        solver=generate(),
        scorer=includes(),
        config=config or GenerateConfig(),
    )
    (log,) = inspect_ai.eval(task, model=model, model_base_url=BASE_URL, display="none", **more)
    assert log.status == "success", log.error
    assert log.samples is not None
    assert len(log.samples) == len(QUESTIONS)
    (call,) = (event.call for event in log.samples[0].events if event.event == "model")
    assert call is not None
    return Answer(log.samples[0].output.completion, call.response["choices"][0].get("motab"))


def main() -> None:
    by_name = f"openai-api/motab/{MODEL}"
    report(
        "inspect-ai",
        {
            "`openai-api/`": evaluated(by_name, model_args={"api_key": API_KEY}),
            "`motab` params": evaluated(
                by_name,
                GenerateConfig(extra_body={"motab": WAIT}),
                model_args={"api_key": API_KEY},
            ),
            "`openai/`": evaluated(
                f"openai/{MODEL}", model_args={"api_key": API_KEY, "responses_api": False}
            ),
        },
    )


if __name__ == "__main__":
    main()
