"""A vLLM on Model Runner V2 in miniature: its scores and its prefix cache, without weights.

It keeps the rules that the answers in tests/golden/vllm-0.32.0-v2 show, and can be made to lose its
cache, to preempt a request, or to be another server.
"""

import base64
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from proxy.backends.servers.vllm import Vllm
from proxy.backends.servers.vllm_cached import ROUTE, CachedVllm
from proxy.core.scoring import entropy, oracle_value
from tests.support.replay import Recording, Replay, Reply, Seen, json_reply

RECORDED: Final = Recording("vllm-0.32.0-v2")
MODEL: Final = "t"
TOP_K: Final = 20
Accident = Literal["preempted", "recounted", "nan", "nan_row", "other_row", "no_rows"]


def backend(up: Replay) -> CachedVllm:
    return CachedVllm(Vllm(up.client, MODEL, None, 81), up.client, MODEL)


def logprob(before: Sequence[int], token: int) -> float:
    """A number that float32 holds exactly."""
    seen = f"{len(before)}|{list(before[-6:])}|{token}"
    return -(zlib.crc32(seen.encode()) % 320) / 64


def candidates(before: Sequence[int]) -> list[float]:
    """The best candidates after a context."""
    return [logprob(before, -1 - rank) for rank in range(TOP_K)]


def value(ids: Sequence[int], start: int, end: int) -> float:
    """V of the tokens from `start` to `end`."""
    return oracle_value([logprob(ids[:i], ids[i]) for i in range(start, end)])


def state_entropy(before: Sequence[int]) -> float:
    return entropy(candidates(before), TOP_K)


@dataclass
class VllmV2:
    block: int = 16
    runner: Literal["v2", "v1", "none"] = "v2"
    has_cache: bool = True
    off_by_nats: float = 0.0
    """By how much scores from the cache are wrong."""
    accidents: list[Accident] = field(default_factory=list)
    """What happens to the next scoring requests."""
    num_computed: int = 0
    _cache: set[tuple[int, ...]] = field(default_factory=set)

    def serve(self, up: Replay) -> None:
        for path in (ROUTE, "/v1/completions", "/tokenize"):
            up.on("POST", path, self.answer)

    def answer(self, seen: Seen) -> Reply:
        status, body = self.post(seen.path, seen.body)
        return json_reply(body, status)

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        if path == "/tokenize":
            return 200, {"tokens": list(body["prompt"].encode())}
        if path == "/v1/completions":
            return 200, self._complete(body)
        if self.runner == "none":
            return 404, {"detail": "Not Found"}
        asked = body["sampling_params"]
        if self.runner == "v1":
            assert asked["prompt_logprob_token_ids"], "V1 could shut down"
            return 400, RECORDED.json("v1_refusal")
        return 200, self._generate(body["token_ids"], asked)

    def evict(self) -> None:
        self._cache.clear()

    def read(self, ids: Sequence[int], *, uses_cache: bool = True) -> int:
        """Compute a prompt; return the number of its tokens that came from the cache."""
        ends = range(self.block, len(ids), self.block)
        known = [end for end in ends if tuple(ids[:end]) in self._cache]
        num_cached = max(known, default=0) if uses_cache else 0
        self.num_computed += len(ids) - num_cached
        if self.has_cache:
            self._cache |= {tuple(ids[:end]) for end in range(self.block, len(ids) + 1, self.block)}
        return num_cached

    def _generate(self, ids: list[int], asked: Any) -> Any:
        first = asked["prompt_logprob_start"]
        assert asked["prompt_logprob_token_ids"] == [[i] for i in ids[first + 1 :]]
        num_cached = self.read(ids, uses_cache=asked.get("skip_reading_prefix_cache") is False)
        accident = self.accidents.pop(0) if self.accidents else None
        off = self.off_by_nats if num_cached else 0.0
        column = [logprob(ids[:i], ids[i]) - off for i in range(first + 1, len(ids))]
        if accident == "nan":
            column[-1] = float("nan")
        scores = None if num_cached > first or accident == "preempted" else npy(column)
        rows = [
            _row(ids[:i], ids[i], asked["prompt_logprobs"], off)
            for i in range(num_cached + 1, len(ids))
        ]
        if rows and accident == "other_row":
            rows[-1] = _row(ids, 10**6, 0, 0.0)
        if rows and accident == "nan_row":
            rows[-1][str(ids[-1])]["logprob"] = -9999.0
        top = [
            {"token_id": -1 - rank, "logprob": x, "rank": rank + 1}
            for rank, x in enumerate(candidates(ids)[: asked["logprobs"]])
        ]
        return {
            "usage": _usage(num_cached + self.block * (accident == "recounted")),
            "prompt_logprobs": None if accident == "no_rows" else [None, *rows],
            "prompt_token_id_logprobs": scores,
            "choices": [{"logprobs": {"content": [{"top_logprobs": top}]}}],
        }

    def _complete(self, body: Any) -> Any:
        prompts = body["prompt"] if isinstance(body["prompt"][0], list) else [body["prompt"]]
        choices: list[dict[str, Any]] = []
        for index, ids in enumerate(prompts):
            self.read(ids, uses_cache="prompt_logprobs" not in body)
            found = {
                f"token_id:{-1 - rank}": x
                for rank, x in enumerate(candidates(ids)[: body["logprobs"]])
            }
            for token in body.get("logprob_token_ids", []):
                found[f"token_id:{token}"] = logprob(ids, token)
            choices.append({"index": index, "logprobs": {"top_logprobs": [found]}})
            if "prompt_logprobs" in body:
                rows = [
                    _row(ids[:i], ids[i], body["prompt_logprobs"], 0.0) for i in range(1, len(ids))
                ]
                choices[-1]["prompt_logprobs"] = [None, *rows]
        return {"choices": choices, "usage": _usage(0)}


def _usage(num_cached: int) -> Any:
    return {"prompt_tokens_details": {"cached_tokens": num_cached}}


def _row(before: Sequence[int], token: int, top_k: int, off: float) -> dict[str, Any]:
    own = {str(token): {"logprob": logprob(before, token) - off, "rank": 30}}
    others = candidates(before)[:top_k]
    return own | {str(-1 - rank): {"logprob": x, "rank": rank + 1} for rank, x in enumerate(others)}


def npy(column: Sequence[float]) -> str:
    """A column of float32 numbers as numpy saves it."""
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (%d, 1), }" % len(column)
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + header.ljust(117) + b"\n"
    return base64.b64encode(content + struct.pack(f"<{len(column)}f", *column)).decode()
