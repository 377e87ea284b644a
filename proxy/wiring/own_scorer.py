"""Opens a pair's own scorer: a server that knows the question and the steps as text."""

import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from proxy.api.metrics import Metrics
from proxy.backends.judges.http_scorer import HttpScorer
from proxy.backends.transport.calls import Timeouts
from proxy.backends.transport.http import UpstreamClient
from proxy.backends.transport.replicas import Replicas
from proxy.backends.transport.retry import RetryPolicy
from proxy.backends.worker_slots import ALL_SLOTS, WorkerSlots
from proxy.engine.upstream import Upstream
from proxy.remote_config import ScorerConfig
from proxy.wiring.upstreams import TIMEOUTS_OF_A_PROBE, once_up

_log = logging.getLogger(__name__)


@asynccontextmanager
async def open_scorer(
    name: str, config: ScorerConfig, metrics: Metrics, wait_s: float, slots: WorkerSlots = ALL_SLOTS
) -> AsyncIterator[Upstream]:
    """Open the scorer as an upstream of that name; close it at the end.

    Raises its last `UpstreamError` if it gives an example's steps no values within `wait_s`
    seconds.
    """
    observe = metrics.upstream_request
    num_places = len(slots.of(range(config.max_concurrent)))
    async with AsyncExitStack() as stack:
        replicas = await stack.enter_async_context(
            Replicas(name, config.urls, metrics, slots.worker)
        )
        client = await stack.enter_async_context(
            UpstreamClient(
                name,
                replicas,
                config.api_key,
                max_connections=2 * num_places,  # for scoring, and for the checks of `/ready`
                observe=observe,
                on_retry=metrics.upstream_retry,
                timeouts=Timeouts(config.answer_timeout_s, config.answer_timeout_s),
            )
        )

        async def verify(url: str) -> None:
            key = config.api_key
            one = UpstreamClient(name, url, key, 1, observe, timeouts=TIMEOUTS_OF_A_PROBE)
            async with one:
                await _prove(name, HttpScorer(one))

        async def connected() -> HttpScorer:
            await replicas.open(verify)
            scorer = HttpScorer(client)
            if not replicas.are_several:  # nobody else asks a single one
                await _prove(name, scorer)
            return scorer

        scorer = await once_up(connected, wait_s)
        client.retry = RetryPolicy(config.retries.attempts, config.retries.total_s)
        upstream = Upstream(
            name,
            scorer,
            scorer,
            (scorer,),
            num_places,
            gpus=config.gpus,
            on_load=partial(metrics.upstream_load, name),
            replicas=replicas,
        )
        replicas.probe()
        yield upstream


async def _prove(name: str, scorer: HttpScorer) -> None:
    """Have the server show both answers that it must have: values, and none where none is asked
    for.
    """
    values = await scorer.prove()
    await scorer.check()
    shown = ", ".join(f"{value:.3f}" for value in values)
    _log.info("upstream '%s' gives two steps of an example the values %s", name, shown)
