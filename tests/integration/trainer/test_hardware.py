"""Tests what the machine decides about a training."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.trainer.scripted import ScriptedTrainer
from trainer.errors import RecipeError, TrainerMissing
from trainer.training.hardware import Environment, Gpu, fitted
from trainer.training.launch import devices_of
from trainer.training.recipe import CpuHardware, GpuHardware

ENVIRONMENT = Environment(Path("/env/bin/python"), {"torch": "2.13.0"}, (), 10**9, None)
GPUS = replace(ENVIRONMENT, gpus=(Gpu("H100", 80 * 10**9), Gpu("H100", 80 * 10**9)))


def test_the_machine_decides_where_the_recipe_does_not(scripted: ScriptedTrainer) -> None:
    small = replace(ENVIRONMENT, num_parameters=1000)
    recipe = scripted.recipe(hardware={"kind": "auto", "per_device": 2})
    assert fitted(recipe, small) == CpuHardware(kind="cpu", per_device=2)
    assert fitted(recipe, GPUS) == GpuHardware(kind="gpu", gpus=2, per_device=2)


@pytest.mark.parametrize(
    ("hardware", "environment", "sentence"),
    [
        (
            {"kind": "gpu", "gpus": 4},
            GPUS,
            r"hardware\.gpus: 4 wanted, PyTorch 2\.13\.0 sees only 2",
        ),
        (
            {"kind": "gpu", "gpus": 2, "zero3": True, "liger": True, "attention": "flash2"},
            GPUS,
            "the recipe needs deepspeed, flash-attn, liger-kernel, not installed there",
        ),
        (
            {"kind": "gpu", "gpus": 2},
            replace(GPUS, num_parameters=8 * 10**9),
            "8,000,000,000 parameters take 128.0 GB, but each GPU has 80.0",
        ),
        ({"kind": "cpu"}, replace(ENVIRONMENT, num_parameters=10**12), "take 16000.0 GB, but this"),
        ({"kind": "auto", "per_device": 5}, GPUS, "batch_size: 32 cannot be divided by the 10"),
    ],
)
def test_what_the_machine_lacks_is_told_before_anything_runs(
    hardware: dict[str, Any], environment: Environment, sentence: str, scripted: ScriptedTrainer
) -> None:
    with pytest.raises((RecipeError, TrainerMissing), match=sentence):
        fitted(scripted.recipe(hardware=hardware), environment)


def test_a_teacher_takes_memory_too(scripted: ScriptedTrainer) -> None:
    recipe = scripted.recipe(**scripted.on_policy(hardware={"kind": "gpu", "gpus": 1}))
    both = replace(GPUS, teacher_parameters=32 * 10**9)
    with pytest.raises(RecipeError, match=r"teacher's 32,000,000,000 weights take 80\.0 GB"):
        fitted(recipe, replace(both, num_parameters=10**9, gpus=(Gpu("small", 10**9),)))


def test_zero3_divides_what_the_gpus_hold(scripted: ScriptedTrainer) -> None:
    hardware = {"kind": "gpu", "gpus": 2, "zero3": True}
    large = replace(GPUS, num_parameters=8 * 10**9, versions={"deepspeed": "0.18"})
    assert fitted(scripted.recipe(hardware=hardware), large).num_devices == 2


def test_several_devices_and_deepspeed_are_for_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert devices_of(CpuHardware(kind="cpu")) == {"CUDA_VISIBLE_DEVICES": ""}
    assert devices_of(CpuHardware(kind="cpu", processes=2))["NPROC_PER_NODE"] == "2"
    assert devices_of(GpuHardware(kind="gpu", gpus=1)) == {"CUDA_VISIBLE_DEVICES": "0"}
    assert devices_of(GpuHardware(kind="gpu", gpus=1, zero3=True))["NPROC_PER_NODE"] == "1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,3,1")
    assert devices_of(GpuHardware(kind="gpu", gpus=2)) == {
        "CUDA_VISIBLE_DEVICES": "5,3",
        "FORCE_TORCHRUN": "1",
        "NPROC_PER_NODE": "2",
    }
