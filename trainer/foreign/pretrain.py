"""Trains a small model from its configuration on lessons, in the trainer's environment.

`pretrain.py SETTINGS` reads a JSON file with the keys of `Settings`. Batches hold lessons of
similar lengths, because short lessons would otherwise mostly be padding. Killed, it continues from
its last checkpoint. It runs on a GPU if there is one.
"""

import json
import math
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM

BATCHES_AT_ONCE = 32
CHECKPOINT_EVERY_S = 60
IGNORED = -100


@dataclass(frozen=True)
class Settings:
    """The lessons are lines with `question`, `begun` and `solution`.

    `marks` stand before question and answer. An answer's beginning is given, and not learned.
    """

    blank: str
    lessons: str
    output: str
    marks: list[str]
    end: str
    num_steps: int
    batch_size: int
    learning_rate: float
    min_learning_rate: float
    begin: str | None = None
    """A folder with the weights to start from."""


@dataclass
class Lessons:
    """Token ids of every lesson, and how many of them are given."""

    ids: list[list[int]]
    num_given: list[int]


def read(settings: Settings) -> Lessons:
    """Tokenise the lessons."""
    tokenizer = Tokenizer.from_file(str(Path(settings.blank) / "tokenizer.json"))
    question, answer, end = (
        tokenizer.encode(token).ids[0] for token in (*settings.marks, settings.end)
    )
    with Path(settings.lessons).open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    parts = [
        [one.ids for one in tokenizer.encode_batch_fast([row[name] for row in rows])]
        for name in ("question", "begun", "solution")
    ]
    given = [[question, *asked, answer, *begun] for asked, begun in zip(*parts[:2], strict=True)]
    return Lessons(
        [[*before, *solved, end] for before, solved in zip(given, parts[2], strict=True)],
        [len(before) for before in given],
    )


def batches(lessons: Lessons, size: int) -> Iterator[list[int]]:
    """Yield the places of lessons of similar lengths, in an order that is the same every time."""
    rng = random.Random(0)  # noqa: S311 - reproducible, not secret
    while True:
        order = list(range(len(lessons.ids)))
        rng.shuffle(order)
        for at in range(0, len(order), size * BATCHES_AT_ONCE):
            part = sorted(
                order[at : at + size * BATCHES_AT_ONCE], key=lambda place: len(lessons.ids[place])
            )
            cut = [part[start : start + size] for start in range(0, len(part), size)]
            rng.shuffle(cut)
            yield from cut


def tensors(
    lessons: Lessons, places: list[int], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and labels; padding stands at the right, where causal attention ignores it."""
    length = max(len(lessons.ids[place]) for place in places)
    ids = torch.zeros((len(places), length), dtype=torch.long)
    labels = torch.full((len(places), length), IGNORED)
    for row, place in enumerate(places):
        lesson = torch.tensor(lessons.ids[place])
        given = lessons.num_given[place]
        ids[row, : len(lesson)] = lesson
        labels[row, given : len(lesson)] = lesson[given:]
    return ids.to(device), labels.to(device)


def rate_at(step: int, settings: Settings) -> float:
    """Warm up over a twentieth of the steps, then follow a cosine."""
    warmup = max(1, settings.num_steps // 20)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    share = (step - warmup) / max(1, settings.num_steps - warmup)
    low, high = settings.min_learning_rate, settings.learning_rate
    return low + (high - low) * 0.5 * (1 + math.cos(math.pi * share))


def save(state: dict[str, Any], path: Path) -> None:
    """Write a checkpoint as a whole."""
    part = path.with_suffix(".part")
    torch.save(state, part)
    part.replace(path)


def main() -> None:
    """Train, or continue."""
    settings = Settings(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    output = Path(settings.output)
    output.mkdir(parents=True, exist_ok=True)
    checkpoint = output / "checkpoint.pt"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    if settings.begin is None:
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(settings.blank))
    else:
        model = AutoModelForCausalLM.from_pretrained(settings.begin)
    model.to(device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=0.0, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    done = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        done = state["done"]
    lessons = read(settings)
    model.train()
    saved = time.monotonic()
    for step, places in enumerate(batches(lessons, settings.batch_size)):
        if step < done:
            continue
        if step == settings.num_steps:
            break
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, settings)
        ids, labels = tensors(lessons, places, device)
        first = min(lessons.num_given[place] for place in places) - 1
        hidden = model.model(ids).last_hidden_state[:, first:-1]
        logits = model.lm_head(hidden)
        loss = cross_entropy(
            logits.flatten(0, 1), labels[:, first + 1 :].flatten(), ignore_index=IGNORED
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 50 == 0:
            sys.stderr.write(f"{step + 1}/{settings.num_steps} loss {loss.item():.4f}\n")
        if time.monotonic() - saved > CHECKPOINT_EVERY_S:
            whole = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            save({**whole, "done": step + 1}, checkpoint)
            saved = time.monotonic()
    model.save_pretrained(output / "model")


if __name__ == "__main__":
    main()
