"""Opens every upstream on its own, checks all of them at once, and judges the pairs."""

import asyncio
import logging
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from uuid import uuid4

from proxy.api.metrics import Metrics
from proxy.backends.base import Call
from proxy.backends.limits import NO_LIMITS
from proxy.config import Config, EmbeddedConfig
from proxy.core.params import Params
from proxy.core.types import Scoring
from proxy.engine.upstream import Upstream
from proxy.errors import MotabError, UpstreamError, UpstreamUnreachable, first_error
from proxy.probe.checks import LIMIT_S, Subject, failure, learn_limits, texts
from proxy.probe.pairs import judge_pair
from proxy.probe.report import (
    Check,
    Report,
    UpstreamChecks,
    UpstreamReport,
    WayChecks,
    failed,
    not_applicable,
    ok,
)
from proxy.probe.scoring import LADDER, unavailable, way_of_scorer, ways
from proxy.remote_config import CalledServer, RetriesConfig, scorer_name
from proxy.secrets import without_userinfo
from proxy.wiring.own_scorer import open_scorer
from proxy.wiring.upstreams import open_upstream

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Probed:
    """An upstream's checks, and the upstream if it could be opened (it is closed by now)."""

    checks: UpstreamChecks
    upstream: Upstream | None


async def probe(config: Config, wait_s: float = 0.0, limit_s: float = LIMIT_S) -> Report:
    """Check every upstream of `config`, and judge the pairs; failures are part of the report.

    An upstream that does not answer is tried for `wait_s` seconds. No check takes longer than
    `limit_s`.
    """
    patient = _with_one_retry(config)
    probed: dict[str, _Probed] = {}

    async def in_sequence(names: list[str]) -> None:
        for name in names:
            probed[name] = await _probe_upstream(name, patient, wait_s, limit_s)

    async def of_scorer(name: str) -> None:
        probed[name] = await _probe_scorer(name, patient, wait_s, limit_s)

    async with asyncio.TaskGroup() as group:
        for names in _by_server(config):
            group.create_task(in_sequence(names))
        for name in config.scorers:
            group.create_task(of_scorer(name))
    reports = {
        name: UpstreamReport(
            upstream.kind,
            _shown_url(upstream),
            upstream.model,
            probed[name].checks,
            NO_LIMITS if (found := probed[name].upstream) is None else found.budget.limits,
        )
        for name, upstream in config.upstreams.items()
    }
    reports |= {
        name: UpstreamReport("http", _shown_url(scorer), None, probed[name].checks)
        for name, scorer in config.scorers.items()
    }
    opened = {name: one.upstream for name, one in probed.items() if one.upstream is not None}
    models = {
        name: judge_pair(model, reports, opened, scorer_name(name) if model.scoring else None)
        for name, model in config.models.items()
    }
    return Report(reports, models)


def _shown_url(upstream: CalledServer) -> str | None:
    return ", ".join(map(without_userinfo, upstream.urls)) or None


def _by_server(config: Config) -> list[list[str]]:
    """The upstreams' names by server, because its upstreams share its slots and caches."""
    names: dict[str, list[str]] = {}
    for name, upstream in config.upstreams.items():
        names.setdefault(min(upstream.urls, default=f"/{name}"), []).append(name)
    return list(names.values())


def _with_one_retry(config: Config) -> Config:
    """Retry once: a connection that a server just closed says nothing about it, two failures do."""
    changes = {"retries": RetriesConfig(attempts=2)}
    upstreams = {
        name: upstream.model_copy(update=changes) for name, upstream in config.upstreams.items()
    }
    models = {
        name: model.model_copy(update={"scoring": model.scoring.model_copy(update=changes)})
        if model.scoring is not None
        else model
        for name, model in config.models.items()
    }
    return config.model_copy(update={"upstreams": upstreams, "models": models})


async def _probe_upstream(name: str, config: Config, wait_s: float, limit_s: float) -> _Probed:
    # An embedded server's start has a limit of its own, and unpacking weights takes time.
    is_embedded = isinstance(config.upstreams[name], EmbeddedConfig)
    open_limit_s = None if is_embedded else wait_s + limit_s
    async with AsyncExitStack() as stack:
        opening = open_upstream(name, config, Metrics(), wait_s)
        upstream = await _opened(name, opening, stack, open_limit_s)
        if isinstance(upstream, _Probed):
            return upstream
        subject = Subject(upstream, Call(uuid4().hex), limit_s, is_embedded)
        about_text = await texts(subject)
        decode = about_text["decode_logprobs"]
        scoring = await ways(subject, _wanted_top_k(name, config), decode)
        await _learn_limits(subject)
        checks = UpstreamChecks(ok("answers"), ok("present"), **about_text, scoring=scoring)
        return _Probed(checks, upstream)


async def _probe_scorer(name: str, config: Config, wait_s: float, limit_s: float) -> _Probed:
    async with AsyncExitStack() as stack:
        opening = open_scorer(name, config.scorers[name], Metrics(), wait_s)
        upstream = await _opened(name, opening, stack, wait_s + limit_s)
        if isinstance(upstream, _Probed):
            return upstream
        way = await way_of_scorer(Subject(upstream, Call(uuid4().hex), limit_s))
        scores_only = not_applicable("a scorer gives values and nothing else")
        rest = (scores_only,) * 7
        scoring: dict[Scoring, WayChecks] = {"http": way}
        checks = UpstreamChecks(ok("answers"), *rest, scoring=scoring, reasoning=scores_only)
        return _Probed(checks, upstream)


async def _opened(
    name: str,
    opening: AbstractAsyncContextManager[Upstream],
    stack: AsyncExitStack,
    limit_s: float | None,
) -> Upstream | _Probed:
    """Return the upstream, or the checks of one that could not be opened."""
    try:
        async with asyncio.timeout(limit_s):
            return await stack.enter_async_context(opening)
    except TimeoutError:
        return _unopened(failed(f"no answer within {limit_s:g} s"), None)
    except (MotabError, BaseExceptionGroup) as raised:
        error = first_error(raised) if isinstance(raised, BaseExceptionGroup) else raised
        check = failure(error, name)
        answers = isinstance(error, UpstreamError) and not isinstance(error, UpstreamUnreachable)
        return _unopened(ok("answers"), check) if answers else _unopened(check, None)


def _unopened(reachable: Check, model: Check | None) -> _Probed:
    """The checks of an upstream that could not be opened."""
    silent = not_applicable("the upstream cannot be used")
    scoring = {rung: unavailable(silent) for rung in LADDER}
    rest = (silent,) * 6
    checks = UpstreamChecks(reachable, model or silent, *rest, scoring=scoring, reasoning=silent)
    return _Probed(checks, None)


async def _learn_limits(subject: Subject) -> None:
    """Learn what can be learnt; a server that fails here has said nothing."""
    try:
        async with asyncio.timeout(subject.limit_s):
            await learn_limits(subject)
    except (MotabError, TimeoutError, BaseExceptionGroup) as error:
        if not isinstance(cause := first_error(error), MotabError | TimeoutError):
            raise
        _log.debug("the limits of '%s' are not known: %s", subject.upstream.name, cause)


def _wanted_top_k(name: str, config: Config) -> int:
    """The most candidates that a pair wants of this teacher; the paper's K if it teaches none."""
    teaching = [model for model in config.models.values() if model.teacher == name]
    default = Params().entropy_top_k
    return max((m.params.get("entropy_top_k", default) for m in teaching), default=default)
