"""Asks `/health` from a process that does nothing else, each time over a new connection."""

import asyncio
import time
from concurrent.futures import ProcessPoolExecutor
from http.client import HTTPConnection

_PAUSE_S = 0.05


async def ask_health(pool: ProcessPoolExecutor, port: int, seconds: float) -> list[float]:
    """Return the milliseconds of each answer at a port of this machine."""
    return await asyncio.get_running_loop().run_in_executor(pool, _ask, port, seconds)


def _ask(port: int, seconds: float) -> list[float]:
    taken = []
    end = time.perf_counter() + seconds
    while (asked := time.perf_counter()) < end:
        connection = HTTPConnection("127.0.0.1", port)
        connection.request("GET", "/health")
        if connection.getresponse().status != 200:
            raise RuntimeError("/health says that the proxy is not alive")
        connection.close()
        taken.append((time.perf_counter() - asked) * 1000)
        time.sleep(_PAUSE_S)
    return taken
