"""Asks OpenAI's chat route one question, for judges on any OpenAI-compatible server.

API: https://platform.openai.com/docs/api-reference/chat/create; the payloads were recorded from
vLLM 0.32.0 (tests/golden).
"""

from collections.abc import Mapping
from typing import Any

from proxy.backends.base import Call
from proxy.backends.judges.judge import Answer, Candidate
from proxy.backends.tokens.openai_usage import cached_tokens
from proxy.backends.tokens.sent_text import SentText
from proxy.backends.tokens.wire_values import end_of, text_of
from proxy.backends.transport.http import UpstreamClient

_PATH = "/v1/chat/completions"


class OpenAIChatAsker:
    """Asks a server's chat route, with the sampling fields of a greedy answer."""

    def __init__(
        self,
        client: UpstreamClient,
        model: str,
        sampling: Mapping[str, Any],
        sent: SentText | None = None,
    ) -> None:
        self._client = client
        self._model = model
        self._sampling = sampling
        self._sent = sent

    @property
    def upstream(self) -> str:
        return self._client.upstream

    async def ask(
        self, prompt: str, max_tokens: int, top_logprobs: int | None, call: Call
    ) -> Answer:
        if self._sent is not None:
            self._sent.check(prompt)
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": max_tokens,
            **self._sampling,
        }
        if top_logprobs is not None:
            body |= {"logprobs": True, "top_logprobs": top_logprobs}
        reply = await self._client.post(_PATH, body, call)
        with self._client.expecting(_PATH):
            choice = reply["choices"][0]
            return Answer(
                text=text_of(choice["message"].get("content")),
                is_whole=end_of(choice.get("finish_reason"), self.upstream) in {None, "stop"},
                top=_first_top(choice.get("logprobs")),
                num_cached_tokens=cached_tokens(reply),
            )


def _first_top(logprobs: dict[str, Any] | None) -> tuple[Candidate, ...] | None:
    rows = (logprobs or {}).get("content")
    if not rows:
        return None
    return tuple(
        Candidate(text_of(x["token"]), float(x["logprob"])) for x in rows[0]["top_logprobs"]
    )
