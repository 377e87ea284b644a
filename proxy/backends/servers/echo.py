"""Scores by `echo`: a `/v1/completions` that returns the prompt with its log-probabilities.

API: https://platform.openai.com/docs/api-reference/completions; the payloads were recorded from
the servers named in tests/golden. The server cuts the text into tokens itself, so a step's tokens
are found by their strings or offsets, never by tokenising the step here.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from proxy.backends.base import Call, Context, Sampling, ScoredToken, Scores, Segment
from proxy.backends.servers.sampling_fields import SamplingFields, openai_sampling
from proxy.backends.servers.vocabulary import Vocabulary
from proxy.backends.tokens.alignment import Alignment, Reach, align, as_in_running_text
from proxy.backends.tokens.logprobs import finite
from proxy.backends.tokens.openai_usage import cached_tokens
from proxy.backends.tokens.sent_text import SentText
from proxy.backends.tokens.wire_values import text_of
from proxy.backends.transport.http import UpstreamClient
from proxy.core.scoring import entropy, oracle_value
from proxy.core.types import Scoring, StepScore

COMPLETIONS = "/v1/completions"
# JSON has no -inf: vLLM writes this number, other servers a lower one.
_LOWEST = -9999.0
# Probability that merged candidates may leave missing: H is then off by 0.1 nats at most.
_MAX_LOST = 0.01


@dataclass(frozen=True, slots=True)
class Completions:
    """The route to one model; `adds` is the text of the special tokens that the server puts before
    every prompt, if it is known, `sampling` names the server's sampling fields.
    """

    client: UpstreamClient
    model: str
    adds: str = ""
    sampling: SamplingFields = openai_sampling
    sent: SentText | None = None
    """Refuses what the server would misread."""

    def body(self, context: Context, max_tokens: int, sampling: Sampling) -> dict[str, Any]:
        """The fields of every request."""
        return {
            "model": self.model,
            "prompt": self.text(context),
            "max_tokens": max_tokens,
            **self.sampling(sampling),
        }

    def text(self, context: Context) -> str:
        """The whole context without `adds`, with which a model's own template may begin.

        Raises `RequestError` if the server would read other control tokens in it.
        """
        if self.sent is not None:
            self.sent.check_steps(context.steps, context.following)
        prompt = context.prompt.text.removeprefix(self.adds)
        return prompt + "".join(context.texts)


class Echo:
    """Scores given text by `echo`: one call gives V, H and the next state's H."""

    scoring: Scoring = "echo"
    recomputes = True

    def __init__(self, route: Completions) -> None:
        self.route = route
        self._client = route.client
        self.vocabulary = Vocabulary(route.client.upstream)
        """The model's tokens, of which servers die if they are asked for more candidates."""

    async def score(
        self, context: Context, num_new: int, top_k: int, call: Call, *, entropy_known: bool
    ) -> Scores:
        # One field asks for the candidates of the prompt and of the next token alike, and the
        # next state's entropy is always wanted, so `entropy_known` saves nothing here.
        del entropy_known
        text = self.route.text(context)
        reply = await self._echo(context, top_k, call)
        steps = context.texts[len(context.texts) - num_new :]
        bounds = list(accumulate((len(step.encode()) for step in steps), initial=0))
        start = len(text.encode()) - bounds[-1]
        with self._client.expecting("the echo"):
            echoed = _Echoed.of(reply, as_in_running_text(text + context.following))
            ranges = echoed.alignment.ranges([start + bound for bound in bounds])
            # A step in which no token ends has the value of the one token in which it lies.
            valued = [
                tokens or range(tokens.start, tokens.start + bool(step))
                for tokens, step in zip(ranges, steps, strict=True)
            ]
            after, end = ranges[-1].stop, start + bounds[-1]
            if not context.following and echoed.alignment.reaches[after - 1] != Reach(end, end):
                raise ValueError(f"the tokens of {text[-40:]!r} do not end where it ends")
            return Scores(
                steps=tuple(echoed.step_score(tokens, top_k) for tokens in valued),
                next_entropy=(
                    echoed.entropy(after, top_k) if after < len(echoed.logprobs) else None
                ),
                num_tokens=sum(map(len, ranges)),
                num_cached_tokens=cached_tokens(reply),
            )

    async def token_logprobs(self, context: Context, call: Call) -> tuple[ScoredToken, ...]:
        text = self.route.text(context)
        reply = await self._echo(context, 1, call)
        size = len(context.texts[-1].encode())
        start = len(text.encode()) - size
        with self._client.expecting("the echo"):
            echoed = _Echoed.of(reply, as_in_running_text(text))
            (tokens,) = echoed.alignment.ranges([start, start + size])
            ends = [echoed.alignment.reaches[index].least - start for index in tokens]
            if ends[-1:] != [size]:
                raise ValueError(f"the tokens of {text[-40:]!r} do not end where it ends")
            return tuple(
                ScoredToken(end, finite(echoed.logprobs[index], _LOWEST))
                for end, index in zip(ends, tokens, strict=True)
            )

    async def adds(self, call: Call) -> str:
        """The text of the special tokens that the server puts before a prompt."""
        prompt = Segment("Question:", ())
        reply = await self._echo(Context(prompt), 1, call)
        with self._client.expecting("the echo"):
            echoed = _Echoed.of(reply, prompt.text)
            return "".join(echoed.tokens[: echoed.alignment.num_outside])

    async def _echo(self, context: Context, top_k: int, call: Call) -> Any:  # noqa: ANN401
        self.vocabulary.require_candidates(top_k)
        body = {
            # Hosts may compute the log-probabilities after applying the temperature.
            **self.route.body(context, 1, Sampling(temperature=1.0)),
            "prompt": as_in_running_text(self.route.text(context) + context.following),
            "echo": True,
            "logprobs": top_k,
        }
        return await self._client.post(COMPLETIONS, body, call)


@dataclass(frozen=True, slots=True)
class _Echoed:
    """An echoed text, token by token, perhaps with the one token written after it."""

    alignment: Alignment
    tokens: Sequence[str]
    logprobs: Sequence[float | None]
    tops: Sequence[Mapping[str, float | None] | None]

    @classmethod
    def of(cls, reply: Any, sent: str) -> "_Echoed":  # noqa: ANN401
        """Parse an echo. Raises ValueError unless all of `sent` came back."""
        choice = reply["choices"][0]
        found = choice["logprobs"]
        if found is None or "tokens" not in found or "top_logprobs" not in found:
            raise ValueError("the server did not echo the prompt with its log-probabilities")
        tokens = [text_of(token) for token in found["tokens"]]
        logprobs, tops = found["token_logprobs"], found["top_logprobs"] or []
        if not len(tokens) == len(logprobs) == len(tops):
            raise ValueError(f"{len(tokens)} tokens, {len(logprobs)} and {len(tops)} entries")
        if not tokens or len(tokens) == 1 < len(sent):
            raise ValueError("the server did not echo the prompt")
        if logprobs[0] is not None:
            raise ValueError("its first entry is not null, so the others may be one token off")
        offsets = found.get("text_offset") or None
        return cls(aligned(tokens, offsets, sent, (1, 0)), tokens, logprobs, tops)

    def step_score(self, tokens: range, top_k: int) -> StepScore:
        value = oracle_value([finite(self.logprobs[index], _LOWEST) for index in tokens])
        return StepScore(value, self.entropy(tokens.start, top_k), len(tokens))

    def entropy(self, index: int, top_k: int) -> float | None:
        """H at the position of token `index`.

        None if candidates are lost: this format merges candidates that look the same, as most do
        that end inside a character. Raises ValueError if the server gave too few.
        """
        row = self.tops[index]
        if row is None:
            raise ValueError(f"token {index} has no top log-probabilities")
        found = [finite(logprob, _LOWEST) for logprob in row.values()]
        may_fall_together = any(not key or "\ufffd" in key for key in row)
        if len(row) < top_k:
            counts = [len(top) for top in self.tops if top is not None]
            if not may_fall_together or max(counts) < top_k:
                message = f"{top_k} top log-probabilities were asked for, {min(counts)} came"
                raise ValueError(f"{message}; entropy_top_k: {min(counts)} would work")
        # The text's own token is listed in addition if it ranks below all others.
        has_own = may_fall_together and self.logprobs[index] == min(
            x for x in found if x is not None
        )
        if len(row) < top_k + has_own and (len(row) < 2 or _lost(found) > _MAX_LOST):
            return None
        return entropy(found, top_k)


def _lost(logprobs: Sequence[float | None]) -> float:
    return 1.0 - math.fsum(math.exp(x) for x in logprobs if x is not None)


def aligned(
    tokens: Sequence[str], offsets: Sequence[int] | None, text: str, without_text: Sequence[int]
) -> Alignment:
    """Align without the last tokens, which may have no text, trying each number in turn."""
    for num in without_text[:-1]:
        kept = len(tokens) - num
        try:
            return align(tokens[:kept], None if offsets is None else offsets[:kept], text)
        except ValueError:
            continue
    kept = len(tokens) - without_text[-1]
    return align(tokens[:kept], None if offsets is None else offsets[:kept], text)
