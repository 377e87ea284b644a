"""Asks with curator, by both of its ways to an OpenAI-compatible server."""

import json
from pathlib import Path
from typing import Any

from bespokelabs import curator

from tests.clients.ways import API_KEY, BASE_URL, MODEL, QUESTIONS, WAIT, Answer, report


def asked(backend: str, model: str, **generation: Any) -> Answer:
    llm = curator.LLM(
        model_name=model,
        backend=backend,
        backend_params={"base_url": BASE_URL, "api_key": API_KEY},
        generation_params=generation,
    )
    done = llm(list(QUESTIONS))
    # What curator takes from `x-ratelimit-*`; without the headers it keeps to 200 a minute.
    assert done.max_requests_per_minute > 200
    texts = [row["response"] for row in done.dataset]
    (kept,) = Path(done.cache_dir).glob("responses_*.jsonl")
    (row,) = (row for row in map(json.loads, kept.open()) if row["response_message"] == texts[0])
    choice = row["raw_response"]["choices"][0]
    return Answer(texts[0], choice.get("motab") or choice["provider_specific_fields"]["motab"])


def main() -> None:
    report(
        "bespokelabs-curator",
        {
            "backend `openai`": asked("openai", MODEL),
            "`motab` params": asked("openai", MODEL, motab=WAIT),
            "backend `litellm`": asked("litellm", f"openai/{MODEL}"),
            "`motab` params by `litellm`": asked("litellm", f"openai/{MODEL}", motab=WAIT),
        },
    )


if __name__ == "__main__":
    main()
