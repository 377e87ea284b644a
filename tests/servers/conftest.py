"""Starts real servers on the CPU: vLLM, SGLang and llama.cpp, and the proxy in front of them."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from benchmarks.weights import smollm2_folder as unpacked
from motab.demo import DemoPair, demo_config
from proxy.backends.embedded.gguf_files import dequantized, model_path
from tests.servers.real import MODEL, PAIRS, Real, smollm2_gguf
from tests.servers.sglang_cpu import sglang
from tests.support.paths import ROOT
from tests.support.proxy.live import llama_server, proxy
from trainer.reproduce.servers import vllm

SERVERS_PYTHON = ROOT / ".venv-servers" / "bin" / "python"


@pytest.fixture(scope="session")
def smollm2_folder() -> Path:
    return unpacked(SERVERS_PYTHON)


@pytest.fixture(scope="session")
def servers(
    smollm2_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Real]]:
    """SmolLM2 on every server, and the demo's tiny pair on SGLang; all start at once.

    SGLang's servers have its two forms of streams, each with an event a token or 8 tokens.
    """
    logs = tmp_path_factory.mktemp("servers")
    steady = ("--enable-metrics", "--decode-log-interval", "1")  # the metrics are up to date
    window = ("--context-length", "2048", *steady)
    delta, interval_8 = "--incremental-streaming-output", ("--stream-interval", "8")
    tiny = {name: model_path(up.model) for name, up in demo_config().upstreams.items()}
    starting = {
        "vllm": vllm(
            SERVERS_PYTHON,
            smollm2_folder,
            logs / "vllm.txt",
            max_tokens=2048,
            flags=(
                "--served-model-name",
                MODEL,
                "--enable-prompt-tokens-details",
                "--enable-scale-out",
            ),
        ),
        "sglang": sglang(smollm2_folder, MODEL, logs / "sglang.txt", *window),
        "sglang8": sglang(
            smollm2_folder,
            MODEL,
            logs / "sglang8.txt",
            *window,
            delta,
            *interval_8,
        ),
        "student": sglang(tiny["student"], "student", logs / "student.txt", delta),
        "teacher": sglang(
            tiny["teacher"], "teacher", logs / "teacher.txt", *interval_8, "--enable-metrics"
        ),
        # The same weights, unpacked to 16 bits.
        "llama": llama_server(dequantized(smollm2_gguf())),
    }
    kinds = {"vllm": "vllm", "llama": "llamacpp"}
    with ExitStack() as stack, ThreadPoolExecutor(len(starting)) as threads:
        urls = dict(zip(starting, threads.map(stack.enter_context, starting.values()), strict=True))
        yield {
            name: Real(kinds.get(name, "sglang"), url, name if name in tiny else MODEL)
            for name, url in urls.items()
        }


@pytest.fixture(scope="session")
def base_url(
    servers: dict[str, Real], smollm2_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The proxy. A model `STUDENT+TEACHER` has a template that the proxy renders, the models
    `own-SERVER` have the server's.
    """
    template = demo_config(DemoPair.PRETRAINED).upstreams["student"].chat_template
    names = ("vllm", "sglang", "llama")
    upstreams = {name: servers[name].upstream() for name in names}
    upstreams |= {
        f"{name}-templated": servers[name].upstream(chat_template=template) for name in names
    }
    upstreams["openai-templated"] = servers["vllm"].upstream(
        kind="openai", tokenizer=str(smollm2_folder), chat_template=template
    )
    models = {f"own-{name}": {"student": name, "teacher": name} for name in names}
    for pair in PAIRS:
        student, teacher = pair.split("+")
        models[pair] = {"student": f"{student}-templated", "teacher": f"{teacher}-templated"}
    path = tmp_path_factory.mktemp("proxy") / "config.yaml"
    path.write_text(yaml.safe_dump({"upstreams": upstreams, "models": models}), encoding="utf-8")
    with proxy(path) as url:
        yield url
