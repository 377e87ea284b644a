"""Evaluates a task of lm-eval that generates, over the chat route and the text route."""

import json
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.tasks import TaskManager

from tests.clients.ways import BASE_URL, MODEL, QUESTIONS, WAIT, Answer, report

TASK = """\
task: sums
dataset_path: json
dataset_kwargs: {data_files: {test: questions.jsonl}}
test_split: test
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
output_type: generate_until
generation_kwargs: {until: []}
metric_list: [{metric: exact_match}]
"""
STUDENT = Path(__file__).parents[2] / "trainer" / "reproduce" / "models" / "student"


def evaluated(model: str, route: str, **more: Any) -> Answer:
    arguments = more.pop("model_args", {})
    done = lm_eval.simple_evaluate(
        model=model,
        model_args={"model": MODEL, "base_url": f"{BASE_URL}/{route}", **arguments},
        tasks=["sums"],
        task_manager=TaskManager(include_path=".", include_defaults=False),
        apply_chat_template=route == "chat/completions",
        **more,
    )
    samples = done["samples"]["sums"]
    assert len(samples) == len(QUESTIONS)
    return Answer(samples[0]["resps"][0][0])


def main() -> None:
    rows = [json.dumps({"question": question, "answer": "3"}) for question in QUESTIONS]
    Path("questions.jsonl").write_text("\n".join(rows), encoding="utf-8")
    Path("sums.yaml").write_text(TASK, encoding="utf-8")
    chat = ("local-chat-completions", "chat/completions")
    text = ("local-completions", "completions")
    # By default lm-eval encodes the prompts, for which it needs the student's own tokenizer.
    tokens = {"tokenizer": str(STUDENT)}
    strings = {"tokenizer_backend": None, "tokenized_requests": False}
    report(
        "lm-eval",
        {
            "`local-chat-completions`": evaluated(*chat),
            "`motab` params": evaluated(*chat, gen_kwargs={"motab": WAIT}),
            "`local-completions`": evaluated(*text, model_args=tokens),
            "with `batch_size=3`": evaluated(*text, model_args=tokens, batch_size=3),
            "with strings": evaluated(*text, model_args=strings, batch_size=3),
        },
    )


if __name__ == "__main__":
    main()
