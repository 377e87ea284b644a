"""Trains with LLaMA-Factory and a weight for every token: `train_weighted.py SETTINGS.yaml`.

It runs in the trainer's environment, under torchrun for several devices. The dataset in
`tokenized_path` has the column `token_weights` (see `weigh_tokens.py`).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from llamafactory.train.sft import workflow
from llamafactory.train.tuner import run_exp
from torch.nn.functional import cross_entropy, pad

IGNORED = -100


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
    logits = outputs.logits.float()
    targets = pad(labels, (0, 1), value=IGNORED)[..., 1:].reshape(-1).to(logits.device)
    shifted = pad(weights, (0, 1))[..., 1:].reshape(-1).to(logits.device)
    losses = cross_entropy(
        logits.view(-1, logits.size(-1)), targets, ignore_index=IGNORED, reduction="none"
    )
    return (losses * shifted).sum() / (num_items_in_batch or (targets != IGNORED).sum())


def collated(
    collate: Callable[[list[dict[str, Any]]], dict[str, Any]], features: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return LLaMA-Factory's batch with the weights, right-padded like its own training batches."""
    weights = [feature.pop("token_weights") for feature in features]
    batch = collate(features)
    width = batch["labels"].shape[1]
    batch["token_weights"] = torch.tensor([row + [0.0] * (width - len(row)) for row in weights])
    return batch


class WeightedTrainer(workflow.CustomSeq2SeqTrainer):  # type: ignore[misc] # it has no types here
    """Their trainer with our loss."""

    def __init__(self, *, data_collator: Callable[..., Any], **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(data_collator=partial(collated, data_collator), **kwargs)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        self.compute_loss_func = partial(weighted_loss, inputs.pop("token_weights"))
        return super().compute_loss(model, inputs, *args, **kwargs)


if __name__ == "__main__":
    workflow.CustomSeq2SeqTrainer = WeightedTrainer
    run_exp()
