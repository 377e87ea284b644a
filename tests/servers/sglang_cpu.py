"""Starts a real SGLang on the CPU, which needs no GPU with the stand-ins of `sglang_shim`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.support.paths import ROOT
from trainer.reproduce.servers import free_port, server_process

SGLANG_PYTHON: Final = ROOT / ".venv-sglang" / "bin" / "python"
SHIM: Final = Path(__file__).with_name("sglang_shim")
SETTINGS: Final = {
    "PYTHONPATH": str(SHIM),
    "SGLANG_USE_CPU_ENGINE": "1",
    # Threads that wait for each other on a busy core take ten times as long.
    "OMP_NUM_THREADS": "1",
    # Compiled functions would need a C++ compiler; these compute the same without.
    "TORCHDYNAMO_DISABLE": "1",
    "HF_HUB_OFFLINE": "1",
    # It takes its own end for a crash, and would wait 5 s before a dump.
    "SGLANG_PYSPY_DUMP_BEFORE_CRASH": "0",
    "SGLANG_CUDA_COREDUMP_BEFORE_CRASH": "0",
}


@contextmanager
def sglang(
    model: Path, name: str, log: Path, *flags: str, port: int | None = None
) -> Iterator[str]:
    """Serve a folder in float32 under that name; yields the base URL, without /v1.

    With a port, a server comes back at the address of one that was killed.
    """
    port = free_port() if port is None else port
    command = [str(SGLANG_PYTHON), "-m", "sglang.launch_server"]
    command += ["--model-path", str(model), "--served-model-name", name]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    command += ["--dtype", "float32", "--attention-backend", "torch_native"]
    # The other sampling backend and the overlap of batches need kernels of a GPU.
    command += ["--sampling-backend", "pytorch", "--disable-overlap-schedule"]
    command += ["--sleep-on-idle"]  # an idle server would take a whole core
    # The cache holds so few tokens, not what the machine's memory holds; the large fraction lets
    # other servers take memory at the same time, which SGLang takes for its own.
    command += ["--max-total-tokens", "8192", "--mem-fraction-static", "0.9", *flags]
    url = f"http://127.0.0.1:{port}"
    with server_process(command, SETTINGS, log, f"{url}/health"):
        yield url
