r"""Trains with LLaMA-Factory and a weight for every token: `train_weighted.py SETTINGS.yaml`.

It runs in the trainer's environment, under torchrun for several devices. The dataset in
`tokenized_path` has the columns that `weigh_tokens.py` makes: the weights, or, at level `prefix`,
what they are computed from in each forward pass.

Let r_i be log pi_S - log pi_T of token i of the output, with pi_S of this forward pass, or frozen.
With the discount d, the prefix before token t has the discounted mean

    m_t = (sum over i < t of d^(t-1-i) r_i) / (sum over i < t of d^(t-1-i)),    m_0 = 0,

and the token has g_t = exp(power * min(max(m_t, log(clip_low)), log(clip_high))). Its weight is g_t
over the mean of g at this position t, over the weighted tokens there of all sequences of the pass.
No gradient passes through weights.
"""

import json
import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from llamafactory.train.sft import workflow
from llamafactory.train.tuner import run_exp
from torch.nn.functional import cross_entropy, pad

IGNORED = -100
# The value of a column where a batch is padded.
PADDING = {
    "token_weights": 0.0,
    "teacher_logprobs": math.nan,
    "student_logprobs": math.nan,
    "by_prefix": 0.0,
}


def losses_of(outputs: Any, targets: torch.Tensor) -> torch.Tensor:  # noqa: ANN401 - the model's
    """Return the negative log-likelihood of each of `targets`, [sequences, tokens], given the
    tokens before it; 0 where it is ignored. A first token has no such likelihood.
    """
    logits = outputs.logits.float()
    shifted = pad(targets, (0, 1), value=IGNORED)[..., 1:].to(logits.device)
    losses = cross_entropy(
        logits.view(-1, logits.size(-1)),
        shifted.reshape(-1),
        ignore_index=IGNORED,
        reduction="none",
    )
    return pad(losses.view(shifted.shape), (1, 0))[..., :-1]


def weighted_loss(
    weights: torch.Tensor,
    outputs: Any,  # noqa: ANN401 - the model's, whatever its class
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """Return the sum of weight times negative log-likelihood, over the number of learned tokens.

    `weights` and `labels` are [sequences, tokens]; `num_items_in_batch` counts over all devices and
    accumulated batches. With all weights 1 it is the loss of plain SFT.
    """
    losses = losses_of(outputs, labels)
    num_learned = num_items_in_batch or (labels[..., 1:] != IGNORED).sum()
    return (losses * weights.to(losses.device)).sum() / num_learned


def loss_by_prefix(
    fit: dict[str, Any],
    ids: torch.Tensor,
    columns: dict[str, torch.Tensor],
    outputs: Any,  # noqa: ANN401 - the model's, whatever its class
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """Return the loss of `weighted_loss` with the weights of this pass, at level `prefix`."""
    columns = {name: column.to(outputs.logits.device) for name, column in columns.items()}
    ids, labels = ids.to(outputs.logits.device), labels.to(outputs.logits.device)
    is_output = ~columns["teacher_logprobs"].isnan()
    is_learned = labels != IGNORED
    losses = losses_of(outputs, ids.where(is_output | is_learned, IGNORED))
    student = columns.get("student_logprobs", -losses.detach())
    ratios = student - columns["teacher_logprobs"]
    weights = prefix_weights(ratios, columns["by_prefix"] > 0, fit)
    num_learned = num_items_in_batch or is_learned[..., 1:].sum()
    return (losses * weights * is_learned).sum() / num_learned


def prefix_weights(
    log_ratios: torch.Tensor, is_weighted: torch.Tensor, fit: dict[str, Any]
) -> torch.Tensor:
    """Return the weights of all tokens, [sequences, tokens]; 1 where a token is not weighted.

    `log_ratios` are NaN outside the output, whose tokens follow each other without a gap.
    """
    is_output = ~log_ratios.isnan()
    sums = discounted(log_ratios.nan_to_num(0.0), fit["discount"])
    counts = discounted(is_output.to(sums.dtype), fit["discount"])
    means = torch.where(counts > 0, sums / counts.clamp(min=1e-30), 0.0)
    clipped = means.clamp(math.log(fit["clip_low"]), math.log(fit["clip_high"]))
    raw = torch.exp(fit["power"] * clipped)
    position = (is_output.cumsum(-1) - is_output.long())[is_weighted]
    at_position = raw.new_zeros(is_output.shape[-1])
    totals = at_position.index_add(0, position, raw[is_weighted])
    num = at_position.index_add(0, position, torch.ones_like(raw[is_weighted]))
    weights = torch.ones_like(raw)
    weights[is_weighted] = raw[is_weighted] * num[position] / totals[position]
    return weights


def discounted(values: torch.Tensor, discount: float) -> torch.Tensor:
    """Return, for each token t, the sum of discount^(t-1-i) * values_i over i < t."""
    sums = pad(values, (1, 0))[..., :-1]
    reach = 1
    while reach < sums.shape[-1]:
        sums = sums + discount**reach * pad(sums, (reach, 0))[..., :-reach]
        reach *= 2
    return sums


def collated(
    collate: Callable[[list[dict[str, Any]]], dict[str, Any]], features: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return LLaMA-Factory's batch with our columns, right-padded like its own training batches."""
    ours = [{name: one.pop(name) for name in PADDING if name in one} for one in features]
    batch = collate(features)
    width = batch["labels"].shape[1]
    for name in ours[0]:
        rows = [one[name] + [PADDING[name]] * (width - len(one[name])) for one in ours]
        batch[name] = torch.tensor(rows)
    return batch


class WeightedTrainer(workflow.CustomSeq2SeqTrainer):  # type: ignore[misc] # it has no types here
    """Their trainer with our loss."""

    fit: dict[str, Any]
    """The formula of the weights, from `weigh.json`."""

    def __init__(self, *, data_collator: Callable[..., Any], **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(data_collator=partial(collated, data_collator), **kwargs)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        columns = {name: inputs.pop(name) for name in PADDING if name in inputs}
        if self.fit["level"] == "prefix":
            loss = partial(loss_by_prefix, self.fit, inputs["input_ids"], columns)
        else:
            loss = partial(weighted_loss, columns["token_weights"])
        self.compute_loss_func = loss
        return super().compute_loss(model, inputs, *args, **kwargs)


if __name__ == "__main__":
    job = Path(sys.argv[1]).with_name("weigh.json")
    WeightedTrainer.fit = json.loads(job.read_text(encoding="utf-8"))["fit"]
    workflow.CustomSeq2SeqTrainer = WeightedTrainer
    run_exp()
