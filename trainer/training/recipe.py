"""Reads and checks a recipe in YAML. Unknown keys are errors; defaults are the paper's values."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from proxy.yaml_file import load_yaml
from synth_client.errors import ClientError
from synth_client.training_data.masks import Mask
from trainer.environments import Trainer
from trainer.errors import RecipeError
from trajectory_records.complaints import complaints_of

_UNIONS: Final = {"data", "loss", "hardware"}


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class RecordsData(_Section):
    """Records, which are exported with these filters (docs/export.md)."""

    kind: Literal["records"]
    path: Path
    filters: tuple[str, ...] = ()


class ExportData(_Section):
    """A folder made by `motab export --format llamafactory`, or a folder like it."""

    kind: Literal["export"]
    path: Path
    dataset: str = "motab"
    """The dataset's name in its `dataset_info.json`."""


class _Loss(_Section):
    mask: Mask = "all"
    """The spans of an answer that are learned (`training_data.masks`); the others are context."""
    learn_history: bool = True
    """Whether earlier turns of the assistant are learned, too."""

    @property
    def by_span(self) -> bool:
        """True if the loss depends on who wrote what; then motab tokenises the records itself."""
        return self.mask != "all"


class SftLoss(_Loss):
    """The mean negative log-likelihood of the learned tokens."""

    kind: Literal["sft"]


class DftLoss(_Loss):
    """Dynamic fine-tuning: each token's loss times its probability, as in LLaMA-Factory."""

    kind: Literal["dft"]


class WeightedLoss(_Loss):
    """Distribution-corrected: the teacher's tokens count by how plausible the student finds them.

    The formula is in `trainer.foreign.weigh_tokens`. Needs records with `token_logprobs`.
    """

    kind: Literal["weighted"]
    level: Literal["token", "step", "prefix"]
    """What the weight is of: every token, every step, or every token by the text before it."""
    power: float = Field(1.0, ge=0, le=10)
    """The exponent of the clipped ratio; 0 is plain SFT."""
    clip_low: float = Field(0.1, gt=0, le=1)
    clip_high: float = Field(10.0, ge=1)
    """Bounds of the ratio of the student's to the teacher's probability."""
    discount: float = Field(0.99, gt=0, le=1)
    """Of a prefix: each earlier token counts by this factor less than the token after it."""
    renew: bool = True
    """Of a prefix: the student is the one that trains, not the one that `motab score` asked."""

    @model_validator(mode="after")
    def _fits_its_level(self) -> Self:
        idle = sorted({"discount", "renew"} & self.model_fields_set)
        if self.level != "prefix" and idle:
            raise ValueError(f"{idle[0]} is of level: prefix, not of level: {self.level}")
        return self

    @property
    def by_span(self) -> bool:
        return True


DataLoss = SftLoss | DftLoss | WeightedLoss
"""The losses on the data's own answers, computed by LLaMA-Factory."""


class OnPolicyLoss(_Section):
    """The divergence from a teacher, token by token, on text the student writes while it learns.

    Trained by TRL. The divergence is the generalised Jensen-Shannon divergence (Agarwal et al.
    2024, arXiv 2306.13649).
    """

    kind: Literal["on_policy"]
    teacher: str = Field(min_length=1)
    """A folder or a Hugging Face name, with the student's vocabulary."""
    share: float = Field(1.0, ge=0, le=1)
    """The probability that a forward pass learns from answers the student writes at that time;
    the other passes learn from the data's answers."""
    beta: float = Field(1.0, ge=0, le=1)
    """0 is KL(teacher || student), 1 KL(student || teacher), 0.5 the Jensen-Shannon divergence."""
    top_k: int | None = Field(None, ge=1)
    """Only this many of the likeliest tokens are distinguished: the teacher's with beta 0, the
    student's with beta 1, both models' in between; all others are merged. With 1, the written token
    replaces the student's likeliest. Default: the whole vocabulary counts."""
    temperature: float = Field(1.0, gt=0)
    """The temperature at which the student writes, and at which the distributions are compared."""
    max_new_tokens: int = Field(512, ge=1)
    """The longest answer that the student writes, in tokens."""


class Training(_Section):
    """The hyperparameters, of AdamW and its schedule. The defaults are the paper's."""

    epochs: float = Field(6, gt=0)
    max_steps: int | None = Field(None, ge=1)
    """Ends training after this many steps, whatever `epochs` says."""
    batch_size: int = Field(32, ge=1)
    """Sequences per step over all devices; with packing, full sequences."""
    max_tokens: int = Field(32768, ge=8)
    """The longest sequence; longer ones are cut."""
    packing: Literal["none", "plain", "neat"] = "none"
    """Joins examples to sequences of `max_tokens`; `plain` lets an example read earlier ones."""
    learning_rate: float = Field(5e-5, gt=0)
    min_learning_rate: float = Field(1e-6, ge=0)
    """The learning rate at the end of the cosine."""
    warmup: float = Field(0.05, ge=0, lt=1)
    """As a share of the steps."""
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.95, ge=0, lt=1)
    weight_decay: float = Field(0.1, ge=0)
    clip: float = Field(1.0, gt=0)
    """The largest norm of the gradient."""
    seed: int = Field(42, ge=0)
    save_every: int = Field(100, ge=1)
    """The number of steps between checkpoints."""
    keep: int = Field(2, ge=1)
    """The number of checkpoints that are kept."""

    @model_validator(mode="after")
    def _rate_falls(self) -> Self:
        if self.min_learning_rate >= self.learning_rate:
            raise ValueError("min_learning_rate must be less than learning_rate")
        return self


class AutoHardware(_Section):
    """All GPUs of this machine, or its CPU if there are none, with the simplest settings."""

    kind: Literal["auto"] = "auto"
    per_device: int = Field(1, ge=1)


class CpuHardware(_Section):
    """Float32 on the CPU; several processes by torchrun."""

    kind: Literal["cpu"]
    processes: int = Field(1, ge=1)
    per_device: int = Field(1, ge=1)
    """The number of sequences per process and pass; the rest of the batch is accumulated."""

    @property
    def num_devices(self) -> int:
        return self.processes


class GpuHardware(_Section):
    """Bfloat16 on GPUs; several by torchrun."""

    kind: Literal["gpu"]
    gpus: int = Field(ge=1)
    per_device: int = Field(1, ge=1)
    """The number of sequences per GPU and pass; the rest of the batch is accumulated."""
    attention: Literal["sdpa", "flash2"] = "sdpa"
    """PyTorch's own, or FlashAttention-2."""
    liger: bool = False
    """Liger's fused kernels."""
    zero3: bool = False
    """DeepSpeed ZeRO-3: weights, gradients and moments are divided among the GPUs."""

    @property
    def num_devices(self) -> int:
        return self.gpus


Hardware = CpuHardware | GpuHardware
"""The package that trains."""


class Recipe(_Section):
    """The model to train, on which data, how, and the output folder."""

    model: str = Field(min_length=1)
    """A folder or a Hugging Face name."""
    from_scratch: bool = False
    """Starts from random weights: only the configuration and the tokenizer of `model` are used."""
    template: str | None = Field(None, min_length=1)
    """A template of LLaMA-Factory's, in place of the tokenizer's own."""
    data: Annotated[RecordsData | ExportData, Field(discriminator="kind")]
    loss: Annotated[DataLoss | OnPolicyLoss, Field(discriminator="kind")] = SftLoss(kind="sft")
    training: Training = Training()
    hardware: Annotated[AutoHardware | Hardware, Field(discriminator="kind")] = AutoHardware()
    output: Path

    @model_validator(mode="after")
    def _batch_can_be_divided(self) -> Self:
        if not isinstance(self.hardware, AutoHardware):
            accumulation_of(self.training, self.hardware)
        return self

    @model_validator(mode="after")
    def _on_policy_is_possible(self) -> Self:
        if not isinstance(self.loss, OnPolicyLoss):
            return self
        if self.template is not None:
            raise ValueError(
                "template: with loss.kind on_policy it is the tokenizer's own chat template; leave"
                " out this template of LLaMA-Factory's"
            )
        if self.from_scratch:
            raise ValueError("from_scratch: loss.kind on_policy needs a student that can write")
        if self.training.packing != "none":
            raise ValueError("training.packing: loss.kind on_policy does not pack; leave it out")
        if self.loss.max_new_tokens >= self.training.max_tokens:
            raise ValueError(
                f"loss.max_new_tokens: {self.loss.max_new_tokens} of the"
                f" {self.training.max_tokens} of training.max_tokens leave no room for a prompt"
            )
        return self

    @model_validator(mode="after")
    def _prefixes_can_be_compared(self) -> Self:
        is_by_prefix = isinstance(self.loss, WeightedLoss) and self.loss.level == "prefix"
        if is_by_prefix and self.hardware.per_device < 2:
            raise ValueError(
                "loss.level: prefix compares the sequences of a forward pass with each other, so"
                f" hardware.per_device must be 2 or more, not {self.hardware.per_device}"
            )
        return self

    @model_validator(mode="after")
    def _spans_can_be_had(self) -> Self:
        if self.loss_by_span is None:
            return self
        wish = "loss.kind: weighted" if self.loss.kind == "weighted" else "loss.mask"
        if isinstance(self.data, ExportData):
            raise ValueError(  # noqa: TRY004 - pydantic adds the key to a ValueError
                f"{wish} needs data.kind: records: an export for LLaMA-Factory does not say who"
                " wrote what"
            )
        if self.training.packing != "none":
            raise ValueError(f"{wish} needs training.packing: none, not {self.training.packing}")
        return self

    @property
    def loss_by_span(self) -> DataLoss | None:
        """The loss if it depends on who wrote what, else None."""
        if isinstance(self.loss, OnPolicyLoss) or not self.loss.by_span:
            return None
        return self.loss

    @property
    def trainer(self) -> Trainer:
        return "trl" if isinstance(self.loss, OnPolicyLoss) else "llamafactory"


def accumulation_of(training: Training, hardware: Hardware) -> int:
    """Return the passes per device and step. Raises ValueError if the batch leaves a remainder."""
    at_once = hardware.num_devices * hardware.per_device
    if training.batch_size % at_once:
        raise ValueError(
            f"training.batch_size: {training.batch_size} cannot be divided by the {at_once}"
            f" sequences that {hardware.num_devices} device(s) take at once"
            " (hardware.per_device each)"
        )
    return training.batch_size // at_once


def load_recipe(path: Path) -> Recipe:
    """Read a file. Raises `RecipeError` with one line that names the file, the key and the cure."""
    raw = mapping_in(path, RecipeError, "model, data and output")
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        complaint = complaints_of(error, most=1, unions=_UNIONS, model=Recipe)
        raise RecipeError(f"{path}: {complaint}") from error


def recipe_with(
    base: Recipe,
    *,
    loss: Mapping[str, JsonValue],
    data: Path,
    output: Path,
    training: Mapping[str, JsonValue] | None = None,
) -> Recipe:
    """Return the recipe on other records, with another loss, and other values of `training`.

    Raises `RecipeError` with the key that does not fit.
    """
    fields = base.model_dump(mode="json", exclude_unset=True)
    fields |= {
        "loss": dict(loss),
        "data": {"kind": "records", "path": str(data)},
        "output": str(output),
        "training": {**fields.get("training", {}), **(training or {})},
    }
    try:
        return Recipe.model_validate(fields)
    except ValidationError as error:
        complaint = complaints_of(error, most=1, unions=_UNIONS, model=Recipe)
        raise RecipeError(complaint) from error


def mapping_in(path: Path, failure: type[ClientError], keys: str) -> dict[str, Any]:
    """Read a file in YAML that holds these keys. Raises `failure`, which names the file."""
    try:
        raw = load_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise failure(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise failure(f"{path}: not UTF-8 text ({error.reason})") from error
    except yaml.YAMLError as error:
        raise failure(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise failure(f"{path}: must hold the keys {keys}")
    return raw
