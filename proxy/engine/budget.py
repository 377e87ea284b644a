"""Keeps every write and every score within what a model can read and write, and says which limit
ended a text.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Literal

from proxy.backends.base import Context, Draft
from proxy.backends.limits import NO_LIMITS, ModelLimits
from proxy.core.types import Author, Party
from proxy.errors import ContextExceeded, UpstreamRefused

# Every scoring call writes one token.
WRITTEN_BY_A_SCORE = 1

LimitName = Literal["context_tokens", "max_output_tokens"]


@dataclass(frozen=True, slots=True)
class LimitedBy:
    """The limit that ended a text: whose model has it, and its tokens, if they are known."""

    model: Party
    limit: LimitName
    tokens: int | None


@dataclass(frozen=True, slots=True)
class Allowance:
    """The tokens that a write may have, and the limit that makes them fewer than were wanted."""

    tokens: int
    limit: LimitName | None = None


@dataclass(slots=True)
class Budget:
    """One model's limits. It learns lower limits from its server's refusals."""

    upstream: str
    limits: ModelLimits = NO_LIMITS
    counts_exactly: bool = True
    """Whether a prompt's tokens are counted as its server counts them; if not, a prompt that seems
    too long is sent all the same, because the server knows better."""

    @property
    def most_written(self) -> int | None:
        """The most tokens of an answer, after the shortest prompt."""
        limits = (self.most_in_window, self.limits.output_tokens)
        return min((limit for limit in limits if limit is not None), default=None)

    @property
    def most_in_window(self) -> int | None:
        """The most tokens of a text after the shortest prompt, whoever wrote them."""
        window = self.limits.context_tokens
        return None if window is None else max(1, window - 1)

    @property
    def most_read(self) -> int | None:
        """The most tokens of a text that can be scored, those of its prompt included."""
        window = self.limits.context_tokens
        limits = (None if window is None else window - WRITTEN_BY_A_SCORE, self.limits.input_tokens)
        return min((limit for limit in limits if limit is not None), default=None)

    def allowance(self, num_prompt: int, num_wanted: int, *, is_scored: bool = False) -> Allowance:
        """Return how many of the wanted tokens the model may write after its prompt.

        If the text `is_scored`, a model with the same limits can score all of it.
        """
        allowed = Allowance(num_wanted)
        limits = self.limits
        if limits.output_tokens is not None and limits.output_tokens < allowed.tokens:
            allowed = Allowance(limits.output_tokens, "max_output_tokens")
        left = self._left(num_prompt, is_scored=is_scored)
        if left is not None and left < allowed.tokens:
            allowed = Allowance(left, "context_tokens")
        return allowed

    def _left(self, num_prompt: int, *, is_scored: bool) -> int | None:
        """The tokens of the window after a prompt; None if they are not known."""
        most_read = self.limits.input_tokens
        most = self.most_read if is_scored else self.limits.context_tokens
        if most_read is not None and num_prompt > most_read:
            left = 0
        elif most is None:
            return None
        else:
            left = max(0, most - num_prompt)
        return left if self.counts_exactly else max(1, left)

    def is_full(self, num_context: int) -> bool:
        """Return whether a context is so long that its server reads no prompt of that length.

        SGLang ends a text some tokens before its window does.
        """
        most_read = self.limits.input_tokens
        return self.counts_exactly and most_read is not None and num_context > most_read

    def num_readable(self, context: Context, num_new: int) -> int:
        """Return how many of the last `num_new` steps of a context can be scored."""
        *ends, _ = context.bounds[len(context.texts) - num_new + 1 :]
        return sum(map(self._can_score, (*ends, len(context.token_ids))))

    def _can_score(self, num_context: int) -> bool:
        return not self.allowance(num_context, WRITTEN_BY_A_SCORE).limit

    def has_room(self, num_context: int, max_step_tokens: int) -> bool:
        """Return whether a step of that many tokens of another model can surely be scored after a
        context, or the window is not known. A step may have twice the tokens in this model.
        """
        most = self.most_read
        return most is None or num_context + 2 * max_step_tokens <= most

    def require_prompt(self, num_prompt: int, *, is_scored: bool = False) -> None:
        """Raise `ContextExceeded` if the window cannot hold a prompt and one token more, which can
        be scored if it `is_scored`.
        """
        if self.allowance(num_prompt, 1, is_scored=is_scored).limit:
            raise self._exceeded("the question has", num_prompt)

    def require(self, context: Context) -> None:
        """Raise `ContextExceeded` if a given text cannot be scored as a whole."""
        self.require_prompt(context.bounds[0])
        if not self._can_score(num_tokens := len(context.token_ids)):
            raise self._exceeded("question and text have", num_tokens)

    def _exceeded(self, what: str, num_tokens: int) -> ContextExceeded:
        limits = self.limits
        if limits.input_tokens is not None and num_tokens >= limits.input_tokens:
            holds = f"reads {limits.input_tokens}"
            if num_tokens == limits.input_tokens:
                holds += ", one of which is for the answer"
        else:
            holds = f"has a window of {limits.context_tokens}, one of which is for the answer"
        message = f"upstream '{self.upstream}': {what} {num_tokens} tokens, but its model {holds}"
        return ContextExceeded(message, window=limits.context_tokens, num_prompt=num_tokens)

    def learn(self, refusal: ContextExceeded | UpstreamRefused, num_prompt: int, num: int) -> bool:
        """Learn from the refusal to write `num` tokens; return whether it named a lower limit."""
        if isinstance(refusal, UpstreamRefused):
            found = ModelLimits(output_tokens=refusal.most_output)
            is_news = refusal.most_output is not None and 0 < refusal.most_output < num
        else:
            found = ModelLimits(context_tokens=refusal.window)
            num_read = refusal.num_prompt or num_prompt
            is_news = refusal.window is not None and 0 < refusal.window < num_read + num
        if is_news:
            self.limits = self.limits.lower(found)
        return is_news


@dataclass(slots=True)
class BudgetedWrite:
    """One write of `num_wanted` tokens after a prompt, within its author's limits."""

    budget: Budget
    author: Author
    num_prompt: int
    num_wanted: int
    is_first: bool
    """Nothing of the trajectory is finished that a refusal could discard."""
    is_scored: bool = False
    """A teacher with the same limits shall be able to score all of the text."""
    limited_by: LimitedBy | None = field(init=False, default=None)
    """The limit that ended the text, if one did."""

    @property
    def can_begin(self) -> bool:
        """Return whether the window has room for any text, as far as is known."""
        return self._allowance(self.num_prompt, self.num_wanted).tokens > 0

    def _allowance(self, num_prompt: int, num_wanted: int) -> Allowance:
        return self.budget.allowance(num_prompt, num_wanted, is_scored=self.is_scored)

    async def drafts(self, write: Callable[[int], AsyncGenerator[Draft]]) -> AsyncGenerator[Draft]:
        """Stream what `write` writes for the number of tokens that it is given.

        Where the server's limits prove to be lower, less is asked for. A text that no longer fits
        ends with `length`; only the first raises `ContextExceeded` if it cannot even begin.
        """
        if self.is_first:
            self.budget.require_prompt(self.num_prompt, is_scored=self.is_scored)
        allowed = self._allowance(self.num_prompt, self.num_wanted)
        while allowed.tokens:
            has_begun, num_written = False, 0
            try:
                async with aclosing(write(allowed.tokens)) as drafts:
                    async for draft in drafts:
                        has_begun = True
                        num_written += len(draft.pieces)
                        if draft.end == "length":
                            is_full = self.budget.is_full(self.num_prompt + num_written)
                            is_short = is_full and num_written < allowed.tokens
                            self._ended_by("context_tokens" if is_short else allowed.limit)
                        yield draft
            except (ContextExceeded, UpstreamRefused) as refusal:
                if has_begun and isinstance(refusal, ContextExceeded):
                    break
                if has_begun:
                    raise
                allowed = self._lowered(allowed, refusal)
            else:
                return
        self._ended_by("context_tokens")
        yield Draft((), "length")

    def _lowered(self, allowed: Allowance, refusal: ContextExceeded | UpstreamRefused) -> Allowance:
        """Return a lower allowance after a refusal; raise the refusal if none could help."""
        knows = self.budget.learn(refusal, self.num_prompt, allowed.tokens)
        if isinstance(refusal, UpstreamRefused) and not knows:
            raise refusal
        num_prompt = self.num_prompt
        if isinstance(refusal, ContextExceeded):
            num_prompt = refusal.num_prompt or num_prompt
        lower = self._allowance(num_prompt, allowed.tokens - 1)
        if not knows or lower.limit is None:
            lower = Allowance(allowed.tokens // 2, "context_tokens")
        if self.is_first and (not knows or not lower.tokens):
            raise refusal
        return lower

    def _ended_by(self, limit: LimitName | None) -> None:
        if limit is None:
            return
        limits = self.budget.limits
        known = {
            "context_tokens": limits.context_tokens,
            "max_output_tokens": limits.output_tokens,
        }
        self.limited_by = LimitedBy(self.author, limit, known[limit])
