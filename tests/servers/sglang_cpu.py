"""Starts a real SGLang on the CPU, which needs no GPU with the stand-ins of `sglang_shim`, and its
router.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import httpx

from tests.support.paths import ROOT
from tests.support.patience import PATIENCE_S
from trainer.compare.processes import free_port, server_process

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


@contextmanager
def sglang_router(workers: Sequence[str], policy: str, log: Path) -> Iterator[str]:
    """Run SGLang's own router in front of servers; yields its URL when it knows all of them."""
    port, metrics_port = free_port(), free_port()
    command = [str(SGLANG_PYTHON), "-m", "sglang_router.launch_router"]
    command += ["--worker-urls", *workers, "--policy", policy]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    command += ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(metrics_port)]
    command += ["--worker-startup-check-interval", "1", "--disable-retries"]
    # A busy machine takes longer than its 5 s, and three failures would move the trajectories.
    command += ["--health-check-timeout-secs", str(int(PATIENCE_S))]
    url = f"http://127.0.0.1:{port}"
    with server_process(command, {"HF_HUB_OFFLINE": "1"}, log, f"{url}/readiness"):
        # It is ready as soon as it knows one of them.
        give_up_at = time.monotonic() + PATIENCE_S
        while httpx.get(f"{url}/readiness").json()["healthy_workers"] < len(workers):
            assert time.monotonic() < give_up_at, log.read_text(encoding="utf-8")
            time.sleep(0.25)
        yield url
