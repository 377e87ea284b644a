"""Measures how the proxy's processor time grows with the length of one text.

Processor time depends on the machine, but its ratio for twice the tokens does not: 2 is linear and
4 is quadratic. Every scoring call sends its whole context, which makes a text of many steps cost a
little more than linear.
"""

from dataclasses import replace
from typing import Any

from benchmarks.figures import Figure, Findings
from benchmarks.load import together, trajectory
from benchmarks.processes import Process, proxy, simulated_pair
from benchmarks.simulator.engine import Rates
from benchmarks.simulator.plan import Plan

_STUDENT = Rates(decode_tok_s=4_000, prefill_tok_s=1e9, stream_interval=8)
_TEACHER = Rates(decode_tok_s=4_000, prefill_tok_s=1e9)
_STEP_TOKENS = 54
_NUM_TEXTS = 4
_LIMIT = 2.5
_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "clean": ("stitch: clean, steps of 54 tokens", {"stitch": "clean"}),
    "flawed": ("stitch: flawed, steps of 54 tokens", {}),
    "one-step": ("a text without the delimiter", {"max_step_tokens": 32768}),
}


async def linear(*, quick: bool) -> Findings:
    """Return the ratio of the costs of 2N and N tokens for each kind of text."""
    num_tokens = 2_048 if quick else 12_000
    figures: list[Figure] = []
    async with (
        simulated_pair("sglang", _STUDENT, _TEACHER) as pair,
        proxy({n: replace(pair, params=params) for n, (_, params) in _CASES.items()}) as motab,
    ):
        await _cost(motab, "clean", 64)  # costs of only the first request
        for name, (title, _) in _CASES.items():
            once = await _cost(motab, name, num_tokens)
            twice = await _cost(motab, name, 2 * num_tokens)
            figures.append(
                Figure(
                    f"{title}: processor of {2 * num_tokens} tokens / {num_tokens} tokens",
                    twice / once,
                    f"{1e6 * once / num_tokens:.0f} us/token, then {5e5 * twice / num_tokens:.0f}",
                    at_most=_LIMIT,
                )
            )
    return Findings(tuple(figures), conditions={"texts at once": _NUM_TEXTS})


async def _cost(motab: Process, name: str, num_tokens: int) -> float:
    """Return the proxy's processor seconds for a text, the mean of a few at once."""
    step_tokens = num_tokens if name == "one-step" else _STEP_TOKENS
    plans = [Plan(seed, num_tokens // step_tokens, step_tokens) for seed in range(_NUM_TEXTS)]
    before = motab.cpu_s()
    await together(trajectory(motab, plan, name) for plan in plans)
    return (motab.cpu_s() - before) / _NUM_TEXTS
