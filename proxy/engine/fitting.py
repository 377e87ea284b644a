"""Scores as many steps as the teacher's window holds, in one call where they all fit."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from proxy.backends.base import Context, Scores
from proxy.core.types import Scored, StepScore
from proxy.engine.budget import Budget
from proxy.errors import ContextExceeded


@dataclass(frozen=True, slots=True)
class StepsToScore:
    """The last `num_new` of `steps`; with `entropy_known`, H of the first is known already."""

    steps: tuple[str, ...]
    num_new: int
    entropy_known: bool

    @property
    def is_first(self) -> bool:
        """Return whether no step before them was scored."""
        return self.num_new == len(self.steps)

    def first(self, num: int) -> "StepsToScore":
        """Return the first `num` of the new steps."""
        num_left = self.num_new - num
        if not num_left:
            return self
        return replace(self, steps=self.steps[: len(self.steps) - num_left], num_new=num)

    def after(self, num: int, *, entropy_known: bool) -> "StepsToScore":
        """Return the new steps but the first `num`."""
        return replace(self, num_new=self.num_new - num, entropy_known=entropy_known)


async def score_what_fits(
    wanted: StepsToScore,
    budget: Budget,
    context_at: Callable[[tuple[str, ...]], Awaitable[Context]],
    score: Callable[[Context, StepsToScore], Awaitable[Scores]],
) -> Scored:
    """Score the steps, or those that the window holds, whichever limit it proves to have.

    Raises `ContextExceeded` if there is nothing to keep: the question alone is too long, or the
    very first step is refused by a server that does not say what its window holds.
    """
    found: list[StepScore] = []
    next_entropy: float | None = None
    num = wanted.num_new
    while wanted.num_new:
        part = wanted.first(min(num, wanted.num_new))
        context = await context_at(part.steps)
        if part.is_first:
            budget.require_prompt(context.bounds[0])
        num = budget.num_readable(context, part.num_new)
        if not num:
            return Scored(tuple(found), next_entropy, is_full=True)
        if num < part.num_new:
            part = part.first(num)
            context = await context_at(part.steps)
        try:
            scores = await score(context, part)
        except ContextExceeded as error:
            num = _num_after(error, budget, context, part)
            if not num:
                return Scored(tuple(found), next_entropy, is_full=True)
            continue
        if len(scores.steps) != num:  # the monitor refuses that
            return Scored((*found, *scores.steps), scores.next_entropy)
        first, *others = scores.steps
        if first.entropy is None and found:
            first = replace(first, entropy=next_entropy)
        found += [first, *others]
        next_entropy = scores.next_entropy
        if num == wanted.num_new:
            break
        wanted = wanted.after(num, entropy_known=next_entropy is not None)
    return Scored(tuple(found), next_entropy)


def _num_after(error: ContextExceeded, budget: Budget, context: Context, part: StepsToScore) -> int:
    """Return how many steps to try after `part` was refused; 0 for none."""
    budget.learn(error, len(context.token_ids), 1)
    if part.is_first:
        budget.require_prompt(context.bounds[0])
    num = budget.num_readable(context, part.num_new)
    if num < part.num_new:
        return num
    if part.is_first and part.num_new == 1:
        raise error
    return part.num_new // 2
