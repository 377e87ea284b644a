"""Serves the proxy's page to a browser, and keeps what the page did that it must not do."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page

from proxy.api.service import Service
from proxy.serving.serve import Server, base_url, listen
from tests.support.patience import PATIENCE_S
from tests.support.proxy.api import service_of
from tests.support.scripted import ScriptedBackend, says, values

STEPS: Final = ("Two and two is four.\n\n", "Four and one is six.\n\n", "Six it is, no doubt.\n\n")
CORRECTION: Final = "Four and one is five."


def straying_pair(*steps: str, correction: str = CORRECTION) -> tuple[Any, Any]:
    """Return a student whose value falls at the second step, at which only the third breaches."""
    first, second, third = steps or STEPS
    judge = values({first: 0.9, second: 0.3, third: 0.1}, entropy=0.25)

    def written(_sampling: object) -> Any:
        return says(correction[:9], correction[9:])

    return ScriptedBackend(says(first, second, third)), ScriptedBackend(written, judge)


def straying_service(*steps: str, **server: Any) -> Service:
    return service_of(*straying_pair(*steps), **server)


@contextmanager
def served(service: Service) -> Iterator[str]:
    """Serve in a thread of its own; gives the address, which ends in a slash."""
    with listen("127.0.0.1", 0) as listener:
        server = Server(service, on_signals=False)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
        thread.start()
        try:
            yield base_url(listener).removesuffix("v1")
        finally:
            server.should_exit = True
            thread.join(PATIENCE_S)


@dataclass
class Watched:
    """An open page, what it asked for, and what it complained about."""

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def run(self, question: str = "How much is 2 + 2 + 1?") -> None:
        """Ask, and wait for the end of all three texts."""
        self.page.fill("#question", question)
        self.page.click("#start")
        self.page.wait_for_selector("html[data-watch=done]")


@contextmanager
def opened(
    browser: Browser, url: str, *, width: int = 1280, scheme: Any = "light", wait: bool = True
) -> Iterator[Watched]:
    """Open the page without its pauses."""
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce"
    )
    context.set_default_timeout(1000 * PATIENCE_S)
    one = Watched(context.new_page())
    one.page.on("request", lambda request: one.requests.append(request.url))
    one.page.on("console", lambda message: one.complaints.append(message.text))
    one.page.on("pageerror", lambda error: one.complaints.append(str(error)))
    one.page.on("dialog", lambda dialog: one.complaints.append(dialog.message))
    one.page.goto(url)
    if wait:
        one.page.wait_for_selector("html[data-page=ready]")
    try:
        yield one
    finally:
        context.close()


def serious(page: Page) -> list[str]:
    """Return what axe-core finds that keeps people from using the page."""
    found = Axe().run(page).response["violations"]
    return [
        f"{one['id']}: {[node['html'] for node in one['nodes']]}"
        for one in found
        if one["impact"] in {"serious", "critical"}
    ]
