"""Counts and times the proxy's work for Prometheus, in one registry per app."""

from functools import cache
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from proxy import __version__
from proxy.core.types import Scoring
from proxy.engine.upstream import CallKind
from proxy.engine.usage import Outcome, Usage

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)
# The fields of a `Usage`, and their labels.
_TOKEN_LABELS = {
    "student_tokens": "student",
    "student_tokens_discarded": "student_discarded",
    "teacher_scored_tokens": "teacher_scored",
    "teacher_cached_tokens": "teacher_cached",
    "teacher_tokens": "teacher",
    "teacher_tokens_discarded": "teacher_discarded",
}
_CALL_LABELS = {
    "student_calls": "student",
    "score_calls": "score",
    "correction_calls": "correction",
}

_REPLICA = ("upstream", "replica")


class Metrics:
    """Counts requests, trajectories, tokens and calls; times requests and upstream requests.

    `shared` is the folder in which the workers of one server, if there are several, keep their
    values (`PROMETHEUS_MULTIPROC_DIR`); the metrics are then the sums over all workers.
    """

    def __init__(self, shared: Path | None = None) -> None:
        self._shared = shared
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "motab_requests", "Requests answered", ["route", "status"], registry=self.registry
        )
        self._request_seconds = Histogram(
            "motab_request_seconds",
            "Seconds from a request to the end of its answer",
            ["route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._trajectories = Counter(
            "motab_trajectories",
            "Trajectories finished, by whether the student strayed",
            ["model", "method", "outcome"],
            registry=self.registry,
        )
        self._tokens = Counter(
            "motab_tokens",
            "Tokens by purpose",
            ["model", "kind"],
            registry=self.registry,
        )
        self._calls = Counter(
            "motab_calls", "Calls of models by purpose", ["model", "kind"], registry=self.registry
        )
        self._score_calls = Counter(
            "motab_score_calls",
            "Scoring calls by the way of scoring",
            ["model", "scoring"],
            registry=self.registry,
        )
        self._fallbacks = Counter(
            "motab_scoring_fallbacks",
            "Steps scored by another way than the model's, by that way",
            ["model", "scoring"],
            registry=self.registry,
        )
        self.active = Gauge(
            "motab_active_trajectories",
            "Trajectories under way",
            multiprocess_mode="livesum",
            registry=self.registry,
        )
        self._upstream_seconds = Histogram(
            "motab_upstream_request_seconds",
            "Seconds of one request to an upstream, to the end of its answer",
            ["upstream", "path", "outcome"],
            buckets=_SECONDS,
            registry=self.registry,
        )

        self._upstream_retries = Counter(
            "motab_upstream_retries",
            "Requests to an upstream sent again, by the error that they followed",
            ["upstream", "code"],
            registry=self.registry,
        )
        self._upstream_waiting = self._upstream_gauge(
            "motab_upstream_waiting", "Calls that wait for a place at an upstream"
        )
        self._upstream_running = self._upstream_gauge(
            "motab_upstream_running", "Calls that hold a place at an upstream"
        )
        self._upstream_max_concurrent = self._upstream_gauge(
            "motab_upstream_max_concurrent", "Calls that may hold a place at an upstream at once"
        )
        self._plain_calls = Counter(
            "motab_plain_calls",
            "Requests passed on to a model that is served alone, by how they ended",
            ["model", "outcome"],
            registry=self.registry,
        )
        processes = Gauge(
            "motab_processes",
            "Processes that serve, by their version",
            ["version"],
            multiprocess_mode="livesum",
            registry=self.registry,
        )
        processes.labels(__version__).set(1)
        self._replica_requests = Counter(
            "motab_replica_requests",
            "Requests to a replica of an upstream, by how they ended",
            ["upstream", "replica", "outcome"],
            registry=self.registry,
        )
        self._replica_up = Gauge(
            "motab_replica_up",
            "1 while a replica gets new trajectories, 0 while it is out or after it was drained",
            _REPLICA,
            multiprocess_mode="livemin",
            registry=self.registry,
        )
        self._replica_running = self._replica_gauge(
            "motab_replica_running_requests", "Requests to a replica that are under way"
        )
        self._replica_trajectories = self._replica_gauge(
            "motab_replica_trajectories", "Trajectories that stay on a replica"
        )
        self._student_waits = Counter(
            "motab_student_waits",
            "Times that a student got too far ahead and had to wait for its teacher",
            ["upstream"],
            registry=self.registry,
        )

        self._levels: dict[Gauge, int] = {}
        """The values of gauges that are set often."""
        # `labels` checks and locks each time: 1 us, and a request needs 15 of them.
        self._requests_of = cache(self._requests.labels)
        self._request_seconds_of = cache(self._request_seconds.labels)
        self._trajectories_of = cache(self._trajectories.labels)
        self._tokens_of = cache(self._tokens.labels)
        self._calls_of = cache(self._calls.labels)
        self._upstream_seconds_of = cache(self._upstream_seconds.labels)
        self._upstream_waiting_of = cache(self._upstream_waiting.labels)
        self._upstream_running_of = cache(self._upstream_running.labels)
        self._upstream_max_concurrent_of = cache(self._upstream_max_concurrent.labels)
        self._replica_requests_of = cache(self._replica_requests.labels)
        self._replica_running_of = cache(self._replica_running.labels)
        self._replica_trajectories_of = cache(self._replica_trajectories.labels)

    def _upstream_gauge(self, name: str, about: str) -> Gauge:
        labels = ["upstream", "kind"]
        return Gauge(name, about, labels, multiprocess_mode="livesum", registry=self.registry)

    def _replica_gauge(self, name: str, about: str) -> Gauge:
        return Gauge(name, about, _REPLICA, multiprocess_mode="livesum", registry=self.registry)

    def _set(self, gauge: Gauge, value: int) -> None:
        """Set a gauge that has another value: most keep theirs, and setting one takes 1 us."""
        if self._levels.get(gauge) != value:
            self._levels[gauge] = value
            gauge.set(value)

    def request(self, route: str, status: int, seconds: float) -> None:
        """A request was answered."""
        self._requests_of(route, str(status)).inc()
        self._request_seconds_of(route).observe(seconds)

    def upstream_request(self, upstream: str, path: str, seconds: float, outcome: str) -> None:
        """A request to an upstream ended: `ok`, `cancelled` or an error's code."""
        self._upstream_seconds_of(upstream, path, outcome).observe(seconds)

    def upstream_retry(self, upstream: str, code: str) -> None:
        """A request to an upstream failed with `code` and will be sent again."""
        self._upstream_retries.labels(upstream, code).inc()

    def upstream_load(
        self, upstream: str, kind: CallKind, waiting: int, running: int, most: int
    ) -> None:
        """Calls of that kind wait for a place at an upstream, or hold one; `most` may hold one."""
        self._set(self._upstream_waiting_of(upstream, kind), waiting)
        self._set(self._upstream_running_of(upstream, kind), running)
        self._set(self._upstream_max_concurrent_of(upstream, kind), most)

    def plain_call(self, model: str, outcome: str) -> None:
        """A request that was passed on ended: `ok`, `cancelled` or an error's code."""
        self._plain_calls.labels(model, outcome).inc()

    def replica_up(self, upstream: str, replica: str, *, is_up: bool) -> None:
        """A replica was taken in or out."""
        self._replica_up.labels(upstream, replica).set(is_up)

    def replica_load(
        self, upstream: str, replica: str, num_running: int, num_trajectories: int
    ) -> None:
        """The requests and trajectories at a replica have changed."""
        self._set(self._replica_running_of(upstream, replica), num_running)
        self._set(self._replica_trajectories_of(upstream, replica), num_trajectories)

    def replica_request(self, upstream: str, replica: str, outcome: str) -> None:
        """A request to a replica ended: `ok`, `cancelled` or an error's code."""
        self._replica_requests_of(upstream, replica, outcome).inc()

    def student_wait(self, upstream: str) -> None:
        """A text of that upstream was paused to wait for verdicts."""
        self._student_waits.labels(upstream).inc()

    def trajectory(self, model: str, method: str, outcome: Outcome) -> None:
        """A trajectory is complete."""
        strayed = "safe" if outcome.trajectory.breach is None else "breach"
        self._trajectories_of(model, method, strayed).inc()
        self.usage(model, outcome.usage, outcome.scoring)
        for way, steps in outcome.fallbacks.items():
            self._fallbacks.labels(model, way).inc(len(steps))

    def usage(self, model: str, usage: Usage, scoring: Scoring | None) -> None:
        """Tokens and calls were spent; `scoring` is how the teacher scored, if it did."""
        if scoring is not None:
            self._score_calls.labels(model, scoring).inc(usage.score_calls)
        for kind, label in _TOKEN_LABELS.items():
            child = self._tokens_of(model, label)
            if num := getattr(usage, kind):
                child.inc(num)
        for kind, label in _CALL_LABELS.items():
            child = self._calls_of(model, label)
            if num := getattr(usage, kind):
                child.inc(num)

    def failed(self, model: str, method: str, usage: Usage, scoring: Scoring | None) -> None:
        """A trajectory ended in an error or was abandoned, after it had cost that much."""
        self._trajectories.labels(model, method, "failed").inc()
        self.usage(model, usage, scoring)

    def render(self) -> bytes:
        """The exposition text."""
        if self._shared is None:
            return generate_latest(self.registry)
        every = CollectorRegistry()
        MultiProcessCollector(every, path=str(self._shared))  # type: ignore[no-untyped-call]
        return generate_latest(every)
