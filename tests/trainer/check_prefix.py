"""Compares the weights by prefix with a plain loop: `check_prefix.py [OUTPUT]`.

Run in the trainer's environment. Without an argument it prints the weights of a case computed by
hand, and the largest differences of the two over random cases: of the weights, of the loss and of
its gradient. With the output folder of a training
it prints the loss of the untrained model over all examples as one pass, one token after the other.
"""

import json
import math
import random
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from datasets import load_from_disk
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parents[2] / "trainer" / "foreign"))

from train_weighted import loss_by_prefix, prefix_weights  # type: ignore[import-not-found]
from weigh_tokens import IGNORED  # type: ignore[import-not-found]

Rows = list[list[float]]


def loop(ratios: Rows, is_weighted: list[list[bool]], fit: dict[str, Any]) -> Rows:
    """The formula, one token after the other; a ratio is NaN outside the output."""
    raw: list[dict[int, tuple[int, float]]] = []
    for row, marks in zip(ratios, is_weighted, strict=True):
        before: list[float] = []
        found: dict[int, tuple[int, float]] = {}
        for t, (ratio, is_marked) in enumerate(zip(row, marks, strict=True)):
            if math.isnan(ratio):
                continue
            num = len(before)
            shares = [fit["discount"] ** (num - 1 - i) for i in range(num)]
            mean = sum(s * r for s, r in zip(shares, before, strict=True)) / (sum(shares) or 1.0)
            ratio_of_prefix = min(max(math.exp(mean), fit["clip_low"]), fit["clip_high"])
            if is_marked:
                found[t] = (num, ratio_of_prefix ** fit["power"])
            before.append(ratio)
        raw.append(found)
    weights = [[1.0] * len(row) for row in ratios]
    for row_weights, found in zip(weights, raw, strict=True):
        for t, (position, g) in found.items():
            there = [other for one in raw for at, other in one.values() if at == position]
            row_weights[t] = g / (sum(there) / len(there))
    return weights


def by_torch(ratios: Rows, is_weighted: list[list[bool]], fit: dict[str, Any]) -> Rows:
    found: Rows = prefix_weights(torch.tensor(ratios), torch.tensor(is_weighted), fit).tolist()
    return found


def drawn(draw: random.Random) -> tuple[Rows, list[list[bool]], dict[str, Any]]:
    length = draw.randint(1, 40)
    ratios, is_weighted = [], []
    for _ in range(draw.randint(1, 5)):
        start, end = sorted(draw.randint(0, length) for _ in range(2))
        is_output = [start <= t < end for t in range(length)]
        ratios.append([draw.gauss(0, 3) if there else math.nan for there in is_output])
        is_weighted.append([there and draw.random() < 0.7 for there in is_output])
    fit = {
        "discount": draw.choice([0.1, 0.5, 0.9, 1.0]),
        "power": draw.choice([0, 0.5, 1, 2]),
        "clip_low": draw.choice([1.0, 0.1, 1e-3]),
        "clip_high": draw.choice([1.0, 10.0, 1e3]),
    }
    return ratios, is_weighted, fit


def furthest() -> float:
    draw = random.Random(0)
    worst = 0.0
    for _ in range(300):
        case = drawn(draw)
        for one, other in zip(loop(*case), by_torch(*case), strict=True):
            worst = max([worst, *(abs(a - b) / a for a, b in zip(one, other, strict=True))])
    return worst


def furthest_loss(*, renew: bool) -> list[float]:
    """The largest differences of the loss and of its gradient, which passes through no weight."""
    draw = random.Random(1)
    torch.manual_seed(1)
    worst = [0.0, 0.0]
    for _ in range(50):
        teacher, is_weighted, fit = drawn(draw)
        shape = (len(teacher), len(teacher[0]))
        logits = (3 * torch.randn(*shape, 11)).requires_grad_()
        ids = torch.randint(11, shape)
        is_learned = torch.tensor(is_weighted) | (torch.rand(shape) < 0.3)
        labels = ids.where(is_learned, IGNORED)
        frozen = (-torch.rand(shape)).tolist()
        columns = {
            "teacher_logprobs": torch.tensor(teacher),
            "by_prefix": torch.tensor(is_weighted).float(),
        } | ({} if renew else {"student_logprobs": torch.tensor(frozen)})
        loss = loss_by_prefix(fit, ids, columns, SimpleNamespace(logits=logits), labels, 7)
        own = torch.zeros(shape)
        own[:, 1:] = logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
        student = own.tolist() if renew else frozen
        ratios = [
            [s - t for s, t in zip(one, other, strict=True)]
            for one, other in zip(student, teacher, strict=True)
        ]
        weights = torch.tensor(loop(ratios, is_weighted, fit))
        wanted = -(weights * own * is_learned).sum() / 7
        found = torch.autograd.grad(loss, logits)[0]
        gradient = torch.autograd.grad(wanted, logits)[0] if wanted.requires_grad else 0 * found
        worst[0] = max(worst[0], float((loss - wanted).detach().abs()))
        worst[1] = max(worst[1], float((found - gradient).abs().max()))
    return worst


def by_hand() -> Rows:
    """Two outputs of three tokens; the first token of the second is the student's."""
    log, nan = math.log, math.nan
    fit = {"discount": 0.5, "power": 1.0, "clip_low": 0.25, "clip_high": 4.0}
    ratios = [[nan, log(4), log(1 / 2), log(8), nan], [nan, nan, log(1 / 8), log(2), log(1)]]
    marks = [[False, True, True, True, False], [False, False, False, True, True]]
    return by_torch(ratios, marks, fit)


def loss_of(output: Path) -> float:
    job = json.loads((output / "weigh.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(job["settings"]["model_name_or_path"])
    examples = load_from_disk(str(output / "tokenized"))["train"]
    all_losses, ratios, marks = [], [], []
    for example in examples:
        ids, teacher = example["input_ids"], example["teacher_logprobs"]
        with torch.no_grad():
            logprobs = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        own = [0.0, *(float(logprobs[i - 1, ids[i]]) for i in range(1, len(ids)))]
        student = own if job["fit"]["renew"] else example["student_logprobs"]
        ratios.append([s - t for s, t in zip(student, teacher, strict=True)])
        marks.append([mark > 0 for mark in example["by_prefix"]])
        all_losses.append([-one for one in own])
    weights = loop(ratios, marks, job["fit"])
    total, count = 0.0, 0
    for example, losses, row in zip(examples, all_losses, weights, strict=True):
        for i in range(1, len(losses)):
            if example["labels"][i] != IGNORED:
                total += row[i] * losses[i]
                count += 1
    return total / count


def main() -> None:
    found: dict[str, Any] = {"by_hand": by_hand(), "furthest": furthest()}
    found |= {"renewed": furthest_loss(renew=True), "frozen": furthest_loss(renew=False)}
    if len(sys.argv) > 1:
        found = {"loss": loss_of(Path(sys.argv[1]))}
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    main()
