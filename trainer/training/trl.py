"""Translates on-policy distillation into TRL's settings, and checks that the data suits TRL."""

from pathlib import Path
from typing import Any

import orjson

from synth_client.files.atomic import output_errors
from synth_client.training_data.export import DATASET_INFO
from trainer.errors import RecipeError
from trainer.training.dataset import Dataset
from trainer.training.llamafactory import ZERO3_FILE, arguments_of, located
from trainer.training.recipe import GpuHardware, Hardware, OnPolicyLoss, Recipe


def distillation_of(
    recipe: Recipe, loss: OnPolicyLoss, hardware: Hardware, dataset: Dataset, model_folder: Path
) -> dict[str, Any]:
    """Return the settings of `foreign/train_on_policy.py`; `arguments` are TRL 1.16's IWOPDConfig.

    Only this one of TRL's trainers has the loss over the likeliest tokens and a teacher in the same
    process; `jsd` is its plain divergence, without the importance weights in the trainer's name.
    """
    arguments: dict[str, Any] = {
        "distillation_objective": "jsd",
        "lmbda": loss.share,
        "beta": loss.beta,
        "loss_top_k": loss.top_k or 0,
        "loss_add_tail": True,
        "temperature": loss.temperature,
        "top_p": 1.0,
        "max_length": recipe.training.max_tokens,
        "max_completion_length": loss.max_new_tokens,
        "dataloader_num_workers": 0,
    }
    return {
        "model": located(recipe.model),
        "teacher": located(loss.teacher),
        "data": str(messages_of(dataset)),
        "arguments": arguments
        | arguments_of(recipe.training, hardware, model_folder)
        | _hardware(hardware),
    }


def _hardware(hardware: Hardware) -> dict[str, Any]:
    if not isinstance(hardware, GpuHardware):
        return {"use_cpu": True, "bf16": False}
    attention = "flash_attention_2" if hardware.attention == "flash2" else "sdpa"
    arguments: dict[str, Any] = {
        "bf16": True,
        "model_init_kwargs": {"attn_implementation": attention},
        "teacher_model_init_kwargs": {"attn_implementation": attention, "dtype": "bfloat16"},
    }
    if hardware.liger:
        arguments["use_liger_kernel"] = True
    if hardware.zero3:
        arguments["deepspeed"] = ZERO3_FILE
    return arguments


def check(recipe: Recipe, dataset: Dataset) -> None:
    """Raise `RecipeError` if TRL cannot learn from the data."""
    messages_of(dataset)
    if dataset.num_examples < recipe.training.batch_size:
        raise RecipeError(
            f"training.batch_size: {recipe.training.batch_size} is more than the"
            f" {dataset.num_examples} examples; loss.kind on_policy takes whole batches only"
        )


def messages_of(dataset: Dataset) -> Path:
    """Return the file, which must hold messages like `motab export --format llamafactory`'s."""
    info = dataset.folder / DATASET_INFO
    with output_errors(info):
        entry = orjson.loads(info.read_bytes())[dataset.name]
    columns, tags = entry.get("columns", {}), entry.get("tags", {})
    found = (columns.get("messages"), tags.get("role_tag"), tags.get("content_tag"))
    if found != ("messages", "role", "content"):
        raise RecipeError(
            f"data.dataset: '{dataset.name}' in {info} is not in motab's own form, which loss.kind"
            " on_policy needs: a column messages of role and content"
        )
    return dataset.folder / str(entry["file_name"])
