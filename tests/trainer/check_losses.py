"""Computes again what a training by span was given: `check_losses.py OUTPUT`.

Run in the trainer's environment. Of the untrained model and the dataset of an output folder it
prints the loss over all examples, one token after the other, and whether tokens and labels are
those of LLaMA-Factory's own path.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import load_from_disk
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parents[2] / "trainer" / "foreign"))

from weigh_tokens import IGNORED, loaded  # type: ignore[import-not-found]


def loss_of(model: Any, examples: Any) -> float:
    total, count = 0.0, 0
    for example in examples:
        ids, labels = example["input_ids"], example["labels"]
        weights = example.get("token_weights", [1.0] * len(ids))
        with torch.no_grad():
            logprobs = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        for i in range(1, len(ids)):
            if labels[i] != IGNORED:
                total -= weights[i] * float(logprobs[i - 1, labels[i]])
                count += 1
    return total / count


def main() -> None:
    output = Path(sys.argv[1])
    settings = json.loads((output / "weigh.json").read_text())["settings"]
    plain = loaded(settings).examples
    examples = load_from_disk(str(output / "tokenized"))["train"]
    folder = settings["model_name_or_path"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = list(zip(plain, examples, strict=False))
    found = {
        "same_ids": all(a["input_ids"] == b["input_ids"] for a, b in rows),
        "same_labels": all(a["labels"] == b["labels"] for a, b in rows),
        "num": [len(plain), len(examples)],
        "learned": [
            tokenizer.decode([x for x in example["labels"] if x != IGNORED]) for example in examples
        ],
        "weights": [example.get("token_weights") for example in examples],
        "labels": [example["labels"] for example in examples],
        "loss": loss_of(AutoModelForCausalLM.from_pretrained(folder), examples),
    }
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    main()
