"""Runs a distilabel pipeline whose generator is the proxy."""

from typing import Any

from distilabel.models import OpenAILLM
from distilabel.pipeline import Pipeline
from distilabel.steps import LoadDataFromDicts
from distilabel.steps.tasks import TextGeneration

from tests.clients.ways import API_KEY, BASE_URL, MODEL, QUESTIONS, WAIT, Answer, report


def generated(**generation: Any) -> Answer:
    llm = OpenAILLM(model=MODEL, base_url=BASE_URL, api_key=API_KEY, generation_kwargs=generation)
    with Pipeline(name="sums") as pipeline:
        rows = LoadDataFromDicts(data=[{"instruction": question} for question in QUESTIONS])
        rows >> TextGeneration(llm=llm)  # type: ignore[operator, unused-ignore]
    done = pipeline.run(use_cache=False)["default"]["train"]
    assert len(done) == len(QUESTIONS)
    assert all(row["generation"] for row in done)
    return Answer(done[0]["generation"], done[0]["distilabel_metadata"].get("motab"))


def main() -> None:
    report(
        "distilabel",
        {
            "pipeline": generated(),
            "`motab` params": generated(extra_body={"motab": WAIT}),
        },
    )


if __name__ == "__main__":
    main()
