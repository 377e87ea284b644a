"""Gives every test its part of the time and its seed, and says at the end what was done."""

import os
import random
from collections.abc import Iterator
from typing import Any

import pytest

from tests.chaos.campaign import Campaign


@pytest.fixture
def campaign(request: pytest.FixtureRequest) -> Iterator[Campaign]:
    seconds = float(os.environ.get("MOTAB_CHAOS_SECONDS", "600"))
    seed = os.environ.get("MOTAB_CHAOS_SEED") or random.SystemRandom().randrange(10**9)
    found = Campaign(seconds, int(seed))
    yield found
    # A worker of pytest-xdist hands its properties over, but not what it prints.
    request.node.user_properties.append(("chaos", found.summary()))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", None) == "teardown":
                for name, summary in report.user_properties:
                    if name == "chaos":
                        test = report.nodeid.rpartition("::")[2]
                        terminalreporter.write_line(f"{test}: {summary}")
