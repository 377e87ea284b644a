"""Reads from a server's own metrics how many tokens of prompts it has computed."""

import re
from collections.abc import Iterable
from typing import Final

import aiohttp

from benchmarks.processes import Served

# Tokens of prompts without those that its cache had: the metric, and the label of its rows.
_COMPUTED: Final = {
    "sglang": ("sglang:realtime_tokens_total{", 'mode="prefill_compute"'),
    "vllm": ("vllm:prompt_tokens_by_source_total{", 'source="local_compute"'),
    "llamacpp": ("llamacpp:prompt_tokens_total ", ""),
}
_BLOCK: Final = re.compile(r'^vllm:cache_config_info\{.*block_size="(\d+)"', re.MULTILINE)
_FLAGS: Final = {
    "sglang": "start it with --enable-metrics",
    "vllm": "vLLM 0.32 has it",
    "llamacpp": "start it with --metrics",
}


async def block_size(http: aiohttp.ClientSession, server: Served) -> int:
    """Return the tokens of a block of the server's prefix cache; 1 if it does not say."""
    async with http.get(f"{server.base_url}/metrics") as response:
        found = _BLOCK.search(await response.text()) if response.ok else None
        return 1 if found is None else int(found[1])


async def tokens_computed(http: aiohttp.ClientSession, server: Served) -> float | None:
    """Return the tokens since the server's start; None if it does not count them."""
    async with http.get(f"{server.base_url}/metrics") as response:
        text = await response.text()
        return total(server.kind, text.splitlines()) if response.ok else None


def total(kind: str, lines: Iterable[str]) -> float | None:
    """Return the sum over the rows of a kind's metric; None without any."""
    metric, label = _COMPUTED[kind]
    rows = [line for line in lines if line.startswith(metric) and label in line]
    return sum(float(row.rsplit(" ", 1)[1]) for row in rows) if rows else None


def why_not(server: Served) -> str:
    """Say what a server lacks that does not count."""
    metric = _COMPUTED[server.kind][0].rstrip("{ ")
    return f"{server.base_url} has no metric {metric}: {_FLAGS[server.kind]}"
