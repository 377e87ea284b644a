"""Describes the real servers of these tests: their addresses, and what they count."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx

from benchmarks.weights import SMOLLM2
from motab.demo import DemoPair, demo_config
from proxy.backends.embedded.gguf_files import model_path
from proxy.backends.servers.sglang import SGLang
from proxy.backends.servers.vllm import Vllm
from proxy.backends.tokens.chat_template import ChatTemplate
from proxy.backends.transport.http import UpstreamClient
from tests.support.patience import PATIENCE_S
from tests.support.proxy.live import client_that_is_killed

MODEL: Final = "smollm2"
SCORING: Final = ("vllm", "sglang")
"""The servers that give the log-probabilities of a prompt."""
PAIRS: Final = (
    "vllm+vllm",
    "sglang+sglang",
    "vllm+sglang",
    "sglang+vllm",
    "llama+vllm",
    "vllm+llama",
    "llama+sglang",
    "sglang+llama",
    "openai+openai",
)
"""Students and teachers that all read SmolLM2's weights."""

# SGLang counts the tokens of a request in `generation_tokens_total` only when it has ended.
_WRITTEN: Final = {
    "vllm": ("vllm:generation_tokens_total{", ""),
    "sglang": ("sglang:realtime_tokens_total{", 'mode="decode"'),
}
_RUNNING: Final = {
    "vllm": ("vllm:num_requests_running{", ""),
    "sglang": ("sglang:num_running_reqs{", ""),
}

QUESTION: Final = "A box has 7 pens and 5 pencils. How many things is that? \u270f\ufe0f"
MESSAGES: Final = [{"role": "user", "content": QUESTION}]
STEPS: Final = (
    "Let us solve this step by step.\n\n",
    "There are 7 pens and 5 pencils \U0001f58a in the box.\n\n",
    "7 + 5 = 13, so there are 13 things; no, wait: 12.\n\n",
    "The answer is 12.",
)


def post(base_url: str, path: str, body: dict[str, Any]) -> Any:
    """The proxy's answer."""
    # The first request with prompt log-probabilities warms vLLM up, for a quarter of a minute.
    reply = httpx.post(f"{base_url}/{path}", json=body, timeout=PATIENCE_S)
    assert reply.status_code == 200, reply.text
    return reply.json()


def smollm2_template() -> ChatTemplate:
    source = demo_config(DemoPair.PRETRAINED).upstreams["student"].chat_template
    assert source is not None
    return ChatTemplate(source)


def smollm2_gguf() -> Path:
    return model_path(SMOLLM2)


@dataclass(frozen=True)
class Real:
    """A server that runs."""

    kind: str
    base_url: str
    model: str = MODEL

    def upstream(self, **settings: Any) -> dict[str, Any]:
        """Its section of a configuration."""
        named = {"kind": self.kind, "base_url": self.base_url, "model": self.model}
        return named | settings

    def client(self) -> UpstreamClient:
        return UpstreamClient("up", self.base_url, None, 8, lambda *_: None)

    async def connect(
        self, client: UpstreamClient, template: ChatTemplate | None = None
    ) -> Vllm | SGLang:
        backend = Vllm if self.kind == "vllm" else SGLang
        return await backend.connect(client, self.model, template)

    def num_written(self) -> float:
        """The number of tokens that it has written since it started."""
        return self._counted(*_WRITTEN[self.kind])

    def num_running(self) -> float:
        """The number of requests that it works on."""
        return self._counted(*_RUNNING[self.kind])

    def num_requests(self) -> float:
        """The number of requests that an SGLang has ended."""
        return self._counted("sglang:num_requests_total{", "")

    def _counted(self, metric: str, label: str) -> float:
        """The metric's sum over its other labels."""
        lines = httpx.get(f"{self.base_url}/metrics", timeout=PATIENCE_S).text.splitlines()
        rows = [line for line in lines if line.startswith(metric) and label in line]
        assert rows, f"{self.kind} has no metric {metric}"
        return sum(float(row.rsplit(" ", 1)[1]) for row in rows)


def leave_idle(servers: Sequence[Real], base_url: str, body: dict[str, Any]) -> None:
    """Ask the proxy for a text, kill the client as soon as the servers write it, and check that
    they stop.
    """

    def num_written() -> float:
        return sum(server.num_written() for server in servers)

    def num_running() -> float:
        return sum(server.num_running() for server in servers)

    before = num_written()
    started = time.monotonic()
    with client_that_is_killed(f"{base_url}/completions", body):
        while num_written() < before + 20:
            assert time.monotonic() < started + PATIENCE_S, "they never wrote"
            time.sleep(0.02)
        assert num_running()
    deadline = time.monotonic() + PATIENCE_S
    while num_running():
        assert time.monotonic() < deadline, "they are still writing"
        time.sleep(0.02)
    # And they stay so: nothing more is sent, and what was being written did not end by itself.
    written = num_written()
    time.sleep(0.5)
    assert num_written() == written < before + 1000
    assert not num_running()
