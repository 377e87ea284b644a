"""A vLLM in miniature, for faults on demand: one character is one token, and it knows one text.

It answers in the shape of the recorded payloads (tests/golden/vllm-0.32.0) what it computes from
the request: whatever the prompt, it writes `TEXT`, and the log-probability of a character is a
function of the one before it.
"""

from dataclasses import dataclass
from typing import Any

import orjson

from tests.support.replay import Replay, Reply, Seen, json_reply, stream_reply

MODEL = "mini"
TEXT = "one, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve, thirteen"
END = 0
NUM_CACHED = 16


@dataclass(slots=True)
class FakeVllm:
    """The faults of the server; none by default."""

    served: str = MODEL
    max_logprobs: int = 20
    ignores_stop: bool = False
    keeps_stop: bool = False
    drops_top_k: bool = False
    logprobs_shift: int = 0
    """How many positions the prompt's log-probabilities are off."""
    has_template: bool = True
    refuses_system: bool = False
    one_chunk: bool = False
    refuses_logprobs: bool = False
    broken: bool = False
    """Every completion is answered with a 500."""
    tells_cache: bool = True
    window: int = 10**9
    """The most tokens of a prompt and its answer, of which the list of models says nothing."""

    def serve(self, up: Replay) -> None:
        up.on("GET", "/v1/models", json_reply({"data": [{"id": self.served}]}))
        up.on("POST", "/tokenize", self.tokenize)
        up.on("POST", "/detokenize", _detokenized)
        up.on("POST", "/v1/completions", self.complete)

    def tokenize(self, seen: Seen) -> Reply:
        """The answer to `/tokenize`."""
        if seen.body["model"] != self.served:
            message = f"The model `{seen.body['model']}` does not exist."
            return json_reply({"error": {"message": message}}, 404)
        if "messages" in seen.body:
            roles = [message["role"] for message in seen.body["messages"]]
            if not self.has_template or (self.refuses_system and "system" in roles):
                return json_reply({"error": {"message": "no chat template"}}, 400)
            text = "".join(f"<{m['role']}>{m['content']}" for m in seen.body["messages"])
        else:
            text = seen.body["prompt"]
        strs = list(text) if seen.body.get("return_token_strs") else None
        ids = [ord(letter) for letter in text]
        about = {"count": len(ids), "max_model_len": self.window}
        return json_reply({**about, "tokens": ids, "token_strs": strs})

    def complete(self, seen: Seen) -> Reply:
        """The answer to `/v1/completions`."""
        body = seen.body
        if self.broken:
            return json_reply({"error": {"message": "the engine is dead"}}, 500)
        if message := self._refusal(body):
            return json_reply({"error": {"message": message}}, 400)
        if body.get("return_tokens_as_token_ids"):
            return self._score(body)
        text, is_end = self._written(body)
        if body.get("stream"):
            return self._stream(text, is_end=is_end)
        if self.refuses_logprobs:
            return json_reply({"error": {"message": "logprobs are switched off"}}, 400)
        return json_reply({"choices": [_choice(text, body["prompt"][-1], is_end=is_end)]})

    def _refusal(self, body: Any) -> str:
        wanted = max(body.get("prompt_logprobs", 0), body.get("logprobs") or 0)
        if wanted > self.max_logprobs:
            return f"Requested {wanted} logprobs, allowed are {self.max_logprobs}"
        prompts = body["prompt"] if isinstance(body["prompt"][0], list) else [body["prompt"]]
        if max(map(len, prompts)) + body["max_tokens"] > self.window:
            return f"This model's maximum context length is {self.window} tokens. However, ..."
        return ""

    def _written(self, body: Any) -> tuple[str, bool]:
        text = TEXT[: body["max_tokens"]]
        for stop in body.get("stop", []):
            if stop in text and not self.ignores_stop:
                end = text.index(stop) + (len(stop) if self.keeps_stop else 0)
                return text[:end], True
        return text, False

    def _stream(self, text: str, *, is_end: bool) -> Reply:
        parts = [text] if self.one_chunk else [*text]
        choices = [_choice(part, 0, is_end=False) for part in parts]
        last = choices[-1]
        last["finish_reason"] = "stop" if is_end else "length"
        last["stop_reason"] = "a stop string" if is_end else None
        usage = {"choices": [], "usage": {"prompt_tokens": 1}}
        events = [{"choices": [choice]} for choice in choices] + [usage]
        lines = [b"data: " + orjson.dumps(event) + b"\n\n" for event in events]
        return stream_reply(*lines, b"data: [DONE]\n\n")

    def _score(self, body: Any) -> Reply:
        if "prompt_logprobs" not in body:
            told = self._next(body)
            choices = [{"index": n, "logprobs": told} for n in range(len(body["prompt"]))]
            return json_reply({"choices": choices})
        ids, top_k = body["prompt"], body["prompt_logprobs"]
        rows: list[Any] = [None]
        for index in range(1, len(ids)):
            of_token = max(index - self.logprobs_shift, 1)
            logprob = logprob_after(ids[of_token - 1])
            row = {str(ids[index]): {"logprob": logprob, "rank": 1}}
            if not self.drops_top_k:
                others = (x for x in range(20_000, 20_000 + top_k - 1))
                row |= {str(x): {"logprob": -9.0, "rank": 2 + x - 20_000} for x in others}
            rows.append(row)
        choice = {"prompt_logprobs": rows, "logprobs": self._next(body)}
        cached = {"prompt_tokens_details": {"cached_tokens": NUM_CACHED}}
        return json_reply({"choices": [choice], "usage": cached if self.tells_cache else {}})

    def _next(self, body: Any) -> dict[str, Any]:
        num = 1 if self.drops_top_k else body["logprobs"]
        return {"top_logprobs": [{f"token_id:{x}": -3.0 - x for x in range(num)}]}


def _detokenized(seen: Seen) -> Reply:
    return json_reply({"prompt": "".join(map(chr, seen.body["tokens"]))})


def logprob_after(token_id: int) -> float:
    """The log-probability of whatever follows this token: a number of its own."""
    return -0.01 * (1 + token_id % 97)


def _choice(text: str, before: int, *, is_end: bool) -> dict[str, Any]:
    tokens = [*text]
    ids = [ord(letter) for letter in text]
    logprobs = [logprob_after(i) for i in [before, *ids][: len(ids)]]
    if is_end:
        tokens, ids, logprobs = [*tokens, "<end>"], [*ids, END], [*logprobs, -0.1]
    return {
        "text": text,
        "token_ids": ids,
        "logprobs": {"tokens": tokens, "token_logprobs": logprobs},
        "finish_reason": None,
        "stop_reason": None,
    }
