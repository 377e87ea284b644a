"""The stand-ins with which SGLang runs on a CPU compute nothing."""

import os
import subprocess

import pytest

from tests.servers.sglang_cpu import SETTINGS, SGLANG_PYTHON
from tests.servers.sglang_shim.sitecustomize import ABSENT

# What a text passes on its way through a Llama: tokens, cache, layers, scores.
ON_THE_WAY = (
    "sglang.srt.managers.tokenizer_manager",
    "sglang.srt.managers.schedule_batch",
    "sglang.srt.mem_cache.radix_cache",
    "sglang.srt.mem_cache.unified_radix_cache",
    "sglang.srt.models.llama",
    "sglang.srt.layers.activation",
    "sglang.srt.layers.attention.torch_native_backend",
    "sglang.srt.layers.layernorm",
    "sglang.srt.layers.linear",
    "sglang.srt.layers.logits_processor",
    "sglang.srt.layers.logprob_processor",
    "sglang.srt.layers.radix_attention",
    "sglang.srt.layers.sampler",
    "sglang.srt.managers.scheduler_components.logprob_result_processor",
    "sglang.srt.managers.detokenizer_manager",
)


def in_sglang(script: str) -> str:
    """The output of a script in SGLang's environment, which must end well."""
    done = subprocess.run(
        [SGLANG_PYTHON, "-c", script],
        env={**os.environ, **SETTINGS},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("package", sorted(ABSENT))
def test_a_stand_in_raises_when_it_is_called(package: str) -> None:
    script = f"""
from {package}.some.module import function
class Derived(function): pass
for called in (function, function.attribute, Derived):
    try:
        called(1, name=2)
    except NotImplementedError as error:
        print(error)
"""
    named = f"{package}.some.module.function"
    assert in_sglang(script).splitlines() == [
        f"{name} is a stand-in: its package is not installed"
        for name in (named, f"{named}.attribute", "Derived")
    ]


def test_no_module_on_the_way_of_a_text_holds_a_stand_in() -> None:
    script = f"""
import importlib, sitecustomize
for name in {ON_THE_WAY}:
    for key, value in vars(importlib.import_module(name)).items():
        if isinstance(value, (sitecustomize.StandIn, sitecustomize.AbsentModule)):
            print(name, key)
"""
    assert in_sglang(script) == ""
