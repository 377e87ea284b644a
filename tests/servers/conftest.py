"""Starts a real vLLM on the CPU, next to the llama.cpp servers of the end-to-end tests."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.weights import SMOLLM2
from benchmarks.weights import smollm2_folder as unpacked
from proxy.backends.embedded.gguf_files import dequantized, model_path
from tests.support.paths import ROOT
from tests.support.proxy.live import llama_server
from trainer.reproduce.servers import vllm

SERVERS_PYTHON = ROOT / ".venv-servers" / "bin" / "python"
VLLM_MODEL = "smollm2"


def smollm2_gguf() -> Path:
    return model_path(SMOLLM2)


@pytest.fixture(scope="session")
def smollm2_folder() -> Path:
    return unpacked(SERVERS_PYTHON)


@pytest.fixture(scope="session")
def vllm_url(smollm2_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("vllm") / "log.txt"
    details = "--enable-prompt-tokens-details"
    flags = ("--served-model-name", VLLM_MODEL, details, "--enable-scale-out")
    with vllm(
        SERVERS_PYTHON,
        smollm2_folder,
        log,
        max_tokens=2048,
        threads=os.cpu_count() or 1,
        flags=flags,
    ) as url:
        yield url


@pytest.fixture(scope="session")
def llama_url() -> Iterator[str]:
    """The same model on llama.cpp, its weights unpacked to 16 bits."""
    with llama_server(dequantized(smollm2_gguf())) as url:
        yield url
