"""Brings the replicas of a running server to those that its configuration names by now."""

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from proxy.api.service import Service
from proxy.config import Config, RemoteUpstream
from proxy.engine.upstream import ReplicaSet
from proxy.errors import ConfigError, UpstreamError

SIGHUP = getattr(signal, "SIGHUP", None)
"""None on Windows."""
_log = logging.getLogger(__name__)

ReadConfig = Callable[[], Config]
"""Reads the configuration again. Raises `ConfigError`."""


def reread(read: ReadConfig, current: Config) -> Config | None:
    """Return `current` with the URLs that its file has by now; None, logged, if that is unusable.

    All other changes of the file wait for the next start, and are logged.
    """
    try:
        found = read()
    except ConfigError as error:
        _log.error("nothing was reloaded: %s", error)
        return None
    upstreams = dict(current.upstreams)
    for name, old in current.upstreams.items():
        new = found.upstreams.get(name)
        if isinstance(old, RemoteUpstream) and isinstance(new, type(old)):
            urls = {"base_url": new.base_url, "base_urls": new.base_urls}
            upstreams[name] = old.model_copy(update=urls)
    models = dict(current.models)
    for name, model in current.models.items():
        other = found.models.get(name)
        if model.scoring and other and other.scoring:
            scoring = model.scoring.model_copy(update={"http": other.scoring.http})
            models[name] = model.model_copy(update={"scoring": scoring})
    reloaded = current.model_copy(update={"upstreams": upstreams, "models": models})
    if others := _changed(reloaded.model_dump(), found.model_dump()):
        message = (
            "only base_url, base_urls and scoring.http are reloaded; restart motab for the changes"
            " of %s"
        )
        _log.warning(message, ", ".join(others))
    return reloaded


def _changed(old: Any, new: Any, where: str = "") -> list[str]:  # noqa: ANN401 - as YAML has it
    """The paths of what differs."""
    if old == new:
        return []
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [where]
    keys = dict.fromkeys((*old, *new))
    return [
        path
        for key in keys
        for path in _changed(old.get(key), new.get(key), f"{where}.{key}".lstrip("."))
    ]


class Reloader:
    """Gives the upstreams of a process their replicas, one configuration after the other."""

    def __init__(self) -> None:
        self._waiting: asyncio.Queue[Config] = asyncio.Queue()

    def ask(self, config: Config) -> None:
        """Have the replicas of this configuration taken, once the service runs."""
        self._waiting.put_nowait(config)

    @asynccontextmanager
    async def running(self, service: Service) -> AsyncIterator[None]:
        """Obey as long as the context lasts."""
        task = asyncio.create_task(self._obey(service))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def _obey(self, service: Service) -> None:
        while True:
            config = await self._waiting.get()
            called = {**config.upstreams, **config.scorers}
            for upstream in service.upstreams():
                urls = called[upstream.name].urls
                if upstream.replicas is not None and urls:
                    await _replace(upstream.name, upstream.replicas, urls)


async def _replace(name: str, replicas: ReplicaSet, urls: list[str]) -> None:
    try:
        await replicas.replace(urls)
    except UpstreamError as error:
        _log.error("the replicas of upstream '%s' stay as they are: %s", name, error)
        return
    states = replicas.states()
    shown = ", ".join(f"{replica} ({state})" for replica, state in states.items())
    _log.info("upstream '%s' has the replicas %s", name, shown)


@asynccontextmanager
async def reloading(
    service: Service, config: Config, read: ReadConfig | None
) -> AsyncIterator[None]:
    """Reload at every SIGHUP as long as the context lasts, if the configuration can be read."""
    if read is None or SIGHUP is None:
        yield
        return
    loop, reloader = asyncio.get_running_loop(), Reloader()

    def reload(read: ReadConfig) -> None:
        nonlocal config
        if (found := reread(read, config)) is not None:
            config = found
            reloader.ask(found)

    loop.add_signal_handler(SIGHUP, reload, read)
    try:
        async with reloader.running(service):
            yield
    finally:
        loop.remove_signal_handler(SIGHUP)
