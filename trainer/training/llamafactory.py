"""Translates a recipe into LLaMA-Factory's settings."""

from pathlib import Path
from typing import Any, Final

from trainer.training.dataset import Dataset
from trainer.training.recipe import (
    GpuHardware,
    Hardware,
    OnPolicyLoss,
    Recipe,
    Training,
    accumulation_of,
)

ZERO3_FILE: Final = "zero3.json"
TOKENISED: Final = "tokenized"
"""The folder of a dataset with our labels and weights."""
# "auto" is filled in from LLaMA-Factory's own settings, divided into each device's share.
ZERO3: Final[dict[str, Any]] = {
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "zero_allow_untested_optimizer": True,
    "bf16": {"enabled": "auto"},
    "zero_optimization": {
        "stage": 3,
        "overlap_comm": False,
        "contiguous_gradients": True,
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto",
        "stage3_gather_16bit_weights_on_model_save": True,
    },
}


def settings_of(
    recipe: Recipe, hardware: Hardware, dataset: Dataset, model_folder: Path
) -> dict[str, Any]:
    """Return the YAML settings of LLaMA-Factory 0.9.5; the student goes to `model_folder`."""
    training, loss = recipe.training, recipe.loss
    if isinstance(loss, OnPolicyLoss):
        raise TypeError("LLaMA-Factory cannot train on-policy")
    settings: dict[str, Any] = {
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "full",
        "model_name_or_path": located(recipe.model),
        "dataset_dir": str(dataset.folder),
        "dataset": dataset.name,
        "cutoff_len": training.max_tokens,
        "packing": training.packing != "none",
        "neat_packing": training.packing == "neat",
        "mask_history": not loss.learn_history,
        "use_dft_loss": loss.kind == "dft",
        "preprocessing_num_workers": 1,
        "dataloader_num_workers": 0,
        # Its cache identifies a dataset by name and folder.
        "overwrite_cache": True,
        "plot_loss": True,
    }
    if recipe.loss_by_span is not None:
        settings["tokenized_path"] = str(model_folder.with_name(TOKENISED))
    if recipe.from_scratch:
        settings["train_from_scratch"] = True
    if recipe.template is not None:
        settings["template"] = recipe.template
    return settings | arguments_of(training, hardware, model_folder) | _hardware(hardware)


def arguments_of(training: Training, hardware: Hardware, model_folder: Path) -> dict[str, Any]:
    """Return the arguments of every trainer that builds on transformers' own."""
    arguments: dict[str, Any] = {
        "optim": "adamw_torch",
        "learning_rate": training.learning_rate,
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr": training.min_learning_rate},
        # Below 1 this is a share of the steps.
        "warmup_steps": training.warmup,
        "adam_beta1": training.beta1,
        "adam_beta2": training.beta2,
        "weight_decay": training.weight_decay,
        "max_grad_norm": training.clip,
        "num_train_epochs": training.epochs,
        "per_device_train_batch_size": hardware.per_device,
        "gradient_accumulation_steps": accumulation_of(training, hardware),
        "seed": training.seed,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": training.save_every,
        "save_total_limit": training.keep,
        "report_to": "none",
        "ddp_timeout": 180000000,
        "output_dir": str(model_folder),
    }
    if training.max_steps is not None:
        arguments["max_steps"] = training.max_steps
    return arguments


def _hardware(hardware: Hardware) -> dict[str, Any]:
    if not isinstance(hardware, GpuHardware):
        return {"use_cpu": True, "bf16": False, "flash_attn": "sdpa"}
    attention = "fa2" if hardware.attention == "flash2" else "sdpa"
    settings: dict[str, Any] = {"bf16": True, "flash_attn": attention}
    if hardware.liger:
        settings["enable_liger_kernel"] = True
    if hardware.zero3:
        settings["deepspeed"] = ZERO3_FILE
    return settings


def located(model: str) -> str:
    """Return the model's name, or its folder as an absolute path: trainers run elsewhere."""
    folder = Path(model).expanduser()
    return str(folder.resolve()) if folder.is_dir() else model
