"""Scores on vLLM from its prefix cache, by `/inference/v1/generate` on Model Runner V2.

Read from the source of vLLM 0.32.0 and recorded from it (tests/golden/vllm-0.32.0-v2). On Model
Runner V1 a request that combines `prompt_logprobs` with `skip_reading_prefix_cache: false` reads
uninitialised memory and can end the server. V1 refuses every request that has
`prompt_logprob_token_ids`, so no request here is without them, and none has the other field before
the server has answered as only V2 does.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, Self
from uuid import uuid4

from proxy.backends.base import GREEDY, Call, Context, Scores
from proxy.backends.servers.sampling_fields import vllm_sampling
from proxy.backends.servers.vllm import LOWEST, ROWS_A_PROMPT, Vllm, of_token, top_of
from proxy.backends.token_ids import TokenIds
from proxy.backends.tokens.logprobs import all_finite, complete
from proxy.backends.tokens.npy import column_of
from proxy.backends.tokens.openai_usage import cached_tokens
from proxy.backends.transport.http import UpstreamClient
from proxy.core.scoring import entropy, oracle_value
from proxy.core.types import Scoring, StepScore
from proxy.errors import RequestError, UpstreamError, UpstreamMalformed, UpstreamRefused

_log = logging.getLogger(__name__)

ROUTE = "/inference/v1/generate"
NEEDS = (
    "scoring from the prefix cache needs vLLM 0.32 or newer with --enable-scale-out, on Model "
    "Runner V2 (its default where Triton works), and routers that pass /inference"
)
# The text of the proof. Its tokens are cut to a number at which no block ends, and which is larger
# than the blocks of 16 to 128 tokens that vLLM uses for most models.
_TEXT = "It is what it is, and so it goes.\n" * 40
_NUM_PROVEN = 250
# The most nats, in the mean over the tokens, between a text that is scored from the cache and the
# same text computed whole. bfloat16 rounds a single log-probability by up to 0.25.
_APART = 0.05
# The most nats between the two places in which an answer has the log-probability of a token. The
# server computes them from batches of different shapes; another token's differ by more.
_ROUNDED = 0.5
# Old tokens that a call may compute again without counting as lost: a block, with room.
_OLD_TOKENS = 256
# This number of lost calls, and no other in between, means that the cache does not serve this pair.
_NUM_LOST = 8


class _TooMuchCached(Exception):
    """The rows of several tokens are missing, because the cache held these tokens already."""


@dataclass(frozen=True, slots=True)
class _CachedAnswer:
    """A checked answer about the tokens from `start` on."""

    values: list[float] | None
    """Each token's log-probability; None if the cache held some of these tokens."""
    rows: list[dict[str, dict[str, Any]]]
    """The rows of the prompt's last tokens, from `num_cached + 1` on."""
    num_cached: int
    top: list[float | None]
    """The candidates of the next token."""


class CachedVllm:
    """A teacher's scorer that computes the new steps and less than a block before them.

    The rows of a step whose tokens are in the cache cannot be had: vLLM gives null for all of them.
    A single missing row, of a step that begins where a block ends, is asked for by one token. Other
    such steps, and answers that make no sense, are scored by `server`, which computes all.
    """

    scoring: Scoring = "cached_logprobs"

    def __init__(self, server: Vllm, client: UpstreamClient, model: str) -> None:
        self._server = server
        self._client = client
        self._model = model
        self._num_lost = 0

    @property
    def recomputes(self) -> bool:
        """Return whether the cache does not serve this server's calls: it is too small, or the
        student is the same server, which leaves its own text there.
        """
        return self._num_lost >= _NUM_LOST

    @classmethod
    async def prove(cls, server: Vllm, client: UpstreamClient, model: str) -> Self:
        """Return the scorer once the server has shown that it scores right from its cache.

        Raises `UpstreamRefused`, with what is missing, if it has not.
        """
        found = cls(server, client, model)
        try:
            await found._prove(Call(f"connect-{uuid4().hex}"))
        except (UpstreamError, RequestError) as error:
            reason = str(error).removeprefix(f"upstream '{client.upstream}': ")
            raise UpstreamRefused(client.upstream, f"{NEEDS}; {reason}") from error
        return found

    async def _prove(self, call: Call) -> None:
        old = list((await self._server.markup(_TEXT, call)).token_ids[:_NUM_PROVEN])
        # Nobody has sent it before, so the cache ends with the old text.
        ids = [*old, *(await self._server.markup(uuid4().hex, call)).token_ids]
        # Safe everywhere, because it computes everything. Only V2 gives the array of values.
        await self._ask(old, 1, 0, 1, call, reads_cache=False)
        read = await self._ask(ids, len(old), 0, 1, call, reads_cache=True)
        whole = await self._ask(ids, len(old), 0, 1, call, reads_cache=False)
        with self._client.expecting(ROUTE):
            if not read.num_cached:
                raise ValueError(f"its cache does not serve {len(old)} tokens that were just read")
            if read.values is None or whole.values is None:
                raise ValueError("a new text has no log-probabilities")
            apart = fmean(abs(a - b) for a, b in zip(read.values, whole.values, strict=True))
            if not apart <= _APART:
                raise ValueError(f"the cache moves log-probabilities by {apart:.3g} nats")

    async def score(
        self, context: Context, num_new: int, top_k: int, call: Call, *, entropy_known: bool
    ) -> Scores:
        """Score as `Scorer` says; `Scores.scoring` is set if the whole context was computed."""
        num_context = context.bounds[-num_new - 1]
        try:
            scores = await self._cached(context, num_new, top_k, call, entropy_known=entropy_known)
        except _TooMuchCached as error:
            _log.info("upstream '%s': %s; all is computed", self._client.upstream, error)
        except (UpstreamRefused, UpstreamMalformed) as error:
            _log.warning("%s; all is computed", error)
        else:
            if entropy_known:  # before a trajectory's first call, nothing of it is in the cache
                self._count(num_context - (scores.num_cached_tokens or 0))
            return scores
        scores = await self._server.score(
            context, num_new, top_k, call, entropy_known=entropy_known
        )
        self._count(num_context)
        return replace(scores, scoring=self._server.scoring)

    def _count(self, num_old: int) -> None:
        """Count a call that computed `num_old` tokens before the new ones."""
        self._num_lost = self._num_lost + 1 if num_old > _OLD_TOKENS else 0

    async def _cached(
        self, context: Context, num_new: int, top_k: int, call: Call, *, entropy_known: bool
    ) -> Scores:
        ids, ranges = context.token_ids, context.ranges(num_new)
        start = ranges[0].start
        unknown = [tokens.start for tokens in ranges][entropy_known:]
        # Where H is not known, neither is the text before it, so that all rows come.
        num_rows = len(ids) - start if entropy_known else len(ids)
        asks_apart = num_rows > ROWS_A_PROMPT * len(unknown)
        prompt_k = 0 if asks_apart else top_k
        answer = await self._ask(ids, start, prompt_k, top_k, call, reads_cache=True)
        num_before = len(ids) - len(answer.rows)
        values: Sequence[float | None] | None = answer.values
        if values is None:
            values = await self._with_the_first(answer, ids, start, call)
        known: dict[int, float] = {}
        with self._client.expecting("the scoring answer"):
            if not asks_apart:
                known = {
                    place: entropy(top_of(answer.rows[place - num_before], top_k), top_k)
                    for place in unknown
                    if place >= num_before
                }
            next_entropy = entropy(complete(answer.top, top_k), top_k)
        if rest := [place for place in unknown if place not in known]:
            found = await self._server.entropies(ids, rest, top_k, call)
            known |= zip(rest, found, strict=True)
        with self._client.expecting("the scoring answer"):
            steps = tuple(
                StepScore(
                    oracle_value(values[tokens.start - start : tokens.stop - start]),
                    known.get(tokens.start),
                    len(tokens),
                )
                for tokens in ranges
            )
        return Scores(
            steps,
            None if context.looks_ahead else next_entropy,
            len(ids) - start,
            answer.num_cached,
        )

    async def _with_the_first(
        self, answer: _CachedAnswer, ids: TokenIds, start: int, call: Call
    ) -> list[float]:
        """The values of an answer without them, if it lacks the first token's row only.

        Its log-probability is asked for as that of the one token after the context.
        """
        num_missing = answer.num_cached + 1 - start
        if num_missing > 1:
            raise _TooMuchCached(
                f"its cache held {num_missing - 1} of {len(ids) - start} tokens that are scored"
            )
        first = await self._server.logprob_after(ids.first(start), ids[start], call)
        with self._client.expecting("the scoring answer"):
            rest = [of_token(row, i) for row, i in zip(answer.rows, ids[start + 1 :], strict=True)]
            found = [x for x in (first, *rest) if x is not None and x > LOWEST]
            if len(found) != len(ids) - start:
                # In these rows the server may write NaN as it writes -inf.
                raise ValueError("a log-probability is missing, or may stand for NaN")
            return found

    async def _ask(
        self,
        ids: Sequence[int],
        start: int,
        prompt_k: int,
        next_k: int,
        call: Call,
        *,
        reads_cache: bool,
    ) -> _CachedAnswer:
        """Ask for the log-probabilities of the tokens from `start` on, and check the answer."""
        fields: dict[str, Any] = {
            **vllm_sampling(GREEDY),
            "max_tokens": 1,
            "detokenize": False,
            "logprobs": next_k,
            "prompt_logprobs": prompt_k,
            "prompt_logprob_token_ids": [[token_id] for token_id in ids[start:]],
            "prompt_logprob_start": start - 1,
        }
        if reads_cache:
            fields["skip_reading_prefix_cache"] = False
        body = {"model": self._model, "token_ids": ids, "sampling_params": fields}
        reply = await self._client.post(ROUTE, body, call)
        with self._client.expecting("the scoring answer"):
            return _read(reply, ids, start)


def _read(reply: dict[str, Any], ids: Sequence[int], start: int) -> _CachedAnswer:
    """Check that every part is about its own token. Raises ValueError if one is not."""
    first, *rows = reply["prompt_logprobs"]
    if first is not None:
        raise ValueError("its first row is not null, so the others may be one token off")
    num_cached = len(ids) - 1 - len(rows)
    reported = cached_tokens(reply)
    if num_cached < 0 or reported not in {None, num_cached}:
        raise ValueError(f"{len(ids)} tokens, {reported} of them cached, but {len(rows)} rows")
    for row, token_id in zip(rows, ids[num_cached + 1 :], strict=True):
        if str(token_id) not in row:
            raise ValueError(f"the row of token {token_id} is about others")
    encoded = reply["prompt_token_id_logprobs"]
    if (encoded is None) != (num_cached >= start):
        come = "no" if encoded is None else "all"
        raise ValueError(
            f"{num_cached} tokens come from the cache, yet {come} values of those from {start} on"
        )
    values: list[float] | None = None
    if encoded is not None:
        values = column_of(encoded, len(ids) - start)
        for value, row, token_id in zip(values, rows[start - len(ids) :], ids[start:], strict=True):
            _check(value, of_token(row, token_id), token_id)
    (written,) = reply["choices"][0]["logprobs"]["content"]
    top = all_finite((candidate["logprob"] for candidate in written["top_logprobs"]), LOWEST)
    return _CachedAnswer(values, rows, num_cached, top)


def _check(value: float, in_row: float | None, token_id: int) -> None:
    """Raise ValueError unless both are one token's log-probability, which NaN never is."""
    if in_row is None:
        raise ValueError(f"the log-probability of token {token_id} is missing")
    if value != in_row and not abs(value - in_row) <= _ROUNDED:
        raise ValueError(f"token {token_id} has the log-probabilities {value} and {in_row}")
