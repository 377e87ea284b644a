"""Measures how long a client's request waited for servers."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class UpstreamClock:
    """The seconds in which any of a request's calls to servers was open."""

    def __init__(self) -> None:
        self._num_open = 0
        self._opened_at = 0.0
        self._upstream_s = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Mark a request to a server as open."""
        if self._num_open == 0:
            self._opened_at = time.perf_counter()
        self._num_open += 1
        try:
            yield
        finally:
            self._num_open -= 1
            if self._num_open == 0:
                self._upstream_s += time.perf_counter() - self._opened_at

    def seconds(self) -> float:
        """Seconds in which at least one request to a server was open."""
        running = time.perf_counter() - self._opened_at if self._num_open else 0.0
        return self._upstream_s + running
