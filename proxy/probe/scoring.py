"""Checks each of an upstream's ways to score a given text."""

import time
from typing import get_args

from proxy.backends.base import Context, Message, Question, Scorer, Scores
from proxy.backends.self_test import TOLERANCE, self_test
from proxy.core.types import JUDGES, Scoring
from proxy.engine.budget import WRITTEN_BY_A_SCORE
from proxy.errors import ContextExceeded, UpstreamMalformed, UpstreamRefused
from proxy.probe.checks import Subject
from proxy.probe.report import Check, WayChecks, failed, no, not_applicable, ok

LADDER: tuple[Scoring, ...] = tuple(way for way in get_args(Scoring) if way != "http")
"""Every rung, best first: the ways that a teacher's server may offer."""
NOT_OFFERED = "not offered by this kind of server as it is configured"
_DEEPEST = 128
_SMALLEST_K = 2
_STEPS = ("One and two make three.\n\n", "So the answer is three.")
# Some 200 tokens, in most tokenizers.
_LONG_STEPS = tuple(
    f"On day {day} they sell {3 * day} loaves of bread and {5 * day} rolls, so together they "
    f"sell {3 * day} + {5 * day} = {8 * day} pieces.\n\n"
    for day in range(1, 7)
)
# The first line, a step whose computation is timed, and one that shows what the cache then holds.
_FEWEST_STEPS = 3


async def ways(subject: Subject, wanted_k: int, decode: Check) -> dict[Scoring, WayChecks]:
    """Check every rung of the ladder; `decode` is the check of log-probabilities in writing."""
    offered = {scorer.scoring: scorer for scorer in subject.upstream.scorers}
    return {
        rung: await _way(subject, offered[rung], wanted_k, decode)
        if rung in offered
        else unavailable(no(subject.upstream.why_not.get(rung, NOT_OFFERED)))
        for rung in LADDER
    }


def unavailable(available: Check) -> WayChecks:
    """The checks of a rung that cannot be used."""
    rest = not_applicable("it cannot be used")
    return WayChecks(available, rest, rest, rest, rest)


async def way_of_scorer(subject: Subject) -> WayChecks:
    """Check the only way of a pair's own scorer."""
    subject.question = Question((Message("user", "What is one and two?"),))
    scorer = subject.upstream.scorer("http")
    available = await subject.attempt(_available(subject, scorer))
    if available.result != "ok":
        return unavailable(available)
    values = not_applicable("its values are the server's own, and no probabilities")
    cache = not_applicable("such a server reports nothing")
    speed = await subject.attempt(_speed_in_steps(subject, scorer))
    return WayChecks(available, values, values, speed, cache)


async def _way(subject: Subject, scorer: Scorer, wanted_k: int, decode: Check) -> WayChecks:
    attempt = subject.attempt
    available = await attempt(_available(subject, scorer))
    if available.result != "ok":
        return unavailable(available)
    speed = await attempt(_speed(subject, scorer))
    # Right after `_speed`, because it scores the step after that text.
    prefix_cache = await attempt(_prefix_cache(subject, scorer))
    verdicts = not_applicable("its values are a judge's verdicts, not probabilities")
    is_judge = scorer.scoring in JUDGES
    if is_judge:
        tested = verdicts
    elif decode.result == "ok":
        tested = await attempt(_self_test(subject, scorer))
    else:
        tested = not_applicable("it needs log-probabilities while writing")
    return WayChecks(
        available=available,
        self_test=tested,
        top_k=verdicts if is_judge else await attempt(_top_k(subject, scorer, wanted_k)),
        speed=speed,
        prefix_cache=prefix_cache,
    )


async def _available(subject: Subject, scorer: Scorer) -> Check:
    context = await subject.context(_STEPS)
    scores = await _score(subject, scorer, context, _SMALLEST_K)
    values = [round(step.value, 6) for step in scores.steps]
    described = ", ".join(f"{value:.3f}" for value in values)
    return ok(f"gives two steps the values {described}", step_values=values)


async def _score(
    subject: Subject, scorer: Scorer, context: Context, top_k: int, num_new: int | None = None
) -> Scores:
    """Score the last `num_new` steps, or all of them."""
    num_new = len(context.texts) if num_new is None else num_new
    scores = await scorer.score(context, num_new, top_k, subject.call, entropy_known=False)
    if len(scores.steps) != num_new:
        message = f"{num_new} steps were to be scored, {len(scores.steps)} were"
        raise UpstreamMalformed(subject.upstream.name, message)
    return scores


async def _self_test(subject: Subject, scorer: Scorer) -> Check:
    upstream = subject.upstream
    test = await self_test(upstream.writer, upstream.reader, scorer, subject.call)
    if test.num_tokens == 0:
        return failed("it wrote no token that could be scored")
    values = {"num_tokens": test.num_tokens, "worst_nats": test.worst}
    if test.passed:
        return ok(f"{test.num_tokens} tokens, {test.worst:.1g} nats apart at most", **values)
    apart = f"its log-probabilities are up to {test.worst:.3g} nats from those of its writing"
    return no(f"{apart} ({TOLERANCE:g} are allowed): its scores are wrong", **values)


async def _top_k(subject: Subject, scorer: Scorer, wanted: int) -> Check:
    """Check whether `wanted` candidates come, and find by halving how many come at most."""
    context = await subject.context(_STEPS[1:])
    refusals: dict[int, str] = {}

    async def comes(top_k: int) -> bool:
        try:
            scores = await _score(subject, scorer, context, top_k)
        except (UpstreamRefused, UpstreamMalformed) as error:
            reason = str(error).removeprefix(f"upstream '{subject.upstream.name}': ")
            refusals[top_k] = reason
            return False
        if scores.steps[0].entropy is None:
            refusals[top_k] = "no candidates come with its values"
            return False
        return True

    deepest = max(_DEEPEST, wanted)
    if await comes(deepest):
        return ok(f"{deepest} or more; {wanted} are wanted", wanted=wanted, most=deepest)
    below, above = _SMALLEST_K - 1, deepest
    if await comes(wanted):
        below = wanted
    else:
        above = wanted
    while above - below > 1:
        middle = (below + above) // 2
        if await comes(middle):
            below = middle
        else:
            above = middle
    most = below if below >= _SMALLEST_K else 0
    if most >= wanted:
        return ok(f"{most} at most; {wanted} are wanted", wanted=wanted, most=most)
    return no(f"{wanted} are wanted, {most} come: {refusals[wanted]}", wanted=wanted, most=most)


async def _long_context(subject: Subject, scorer: Scorer) -> Context:
    """The question, and as many of the long steps as the model reads.

    The first is a line that no earlier probe or way of scoring has left in a cache.
    """
    ticket = f"Ticket {subject.call.session_id} of {scorer.scoring}.\n\n"
    context = await subject.context((ticket, *_LONG_STEPS))
    most = subject.upstream.budget.most_read
    while most is not None and len(context.texts) > _FEWEST_STEPS and len(context.token_ids) > most:
        context.truncate(len(context.texts) - 1)
    return context


async def _all_but_the_last(subject: Subject, scorer: Scorer) -> Context:
    context = await _long_context(subject, scorer)
    context.truncate(len(context.texts) - 1)
    return context


async def _speed(subject: Subject, scorer: Scorer) -> Check:
    context = await _all_but_the_last(subject, scorer)
    started = time.perf_counter()
    try:
        scores = await _score(subject, scorer, context, _SMALLEST_K)
    except ContextExceeded as error:  # of a server that does not say what its window holds
        if not subject.upstream.budget.learn(error, len(context.token_ids), WRITTEN_BY_A_SCORE):
            raise
        context = await _all_but_the_last(subject, scorer)
        started = time.perf_counter()
        scores = await _score(subject, scorer, context, _SMALLEST_K)
    seconds = time.perf_counter() - started
    rate = scores.num_tokens / seconds
    return ok(
        f"{scores.num_tokens} tokens in {seconds:.2f} s ({rate:.0f} a second)",
        num_tokens=scores.num_tokens,
        num_context_tokens=context.bounds[0],
        seconds=round(seconds, 4),
    )


async def _speed_in_steps(subject: Subject, scorer: Scorer) -> Check:
    context = await subject.context(_LONG_STEPS)
    started = time.perf_counter()
    num_steps = len((await _score(subject, scorer, context, _SMALLEST_K)).steps)
    seconds = time.perf_counter() - started
    detail = f"{num_steps} steps in {seconds:.2f} s"
    return ok(detail, num_steps=num_steps, seconds=round(seconds, 4))


async def _prefix_cache(subject: Subject, scorer: Scorer) -> Check:
    """Check how much comes from the cache when the step after the text of `_speed` is scored."""
    context = await _long_context(subject, scorer)
    started = time.perf_counter()
    scores = await _score(subject, scorer, context, _SMALLEST_K, num_new=1)
    seconds = time.perf_counter() - started
    num_cached, num_before = scores.num_cached_tokens, context.bounds[-2]
    if num_cached is None:
        return not_applicable(f"the server reports nothing; the step after it: {seconds:.2f} s")
    values = {
        "num_cached_tokens": num_cached,
        "num_context_tokens": num_before,
        "seconds": round(seconds, 4),
    }
    described = f"{num_cached} of the {num_before} tokens before a step"
    if num_cached == 0:
        return no(f"{described}: every call computes its whole context again", **values)
    return ok(described, **values)
