"""Tests that a client that leaves costs next to nothing more."""

import time

import httpx
import pytest

from tests.support.patience import PATIENCE_S
from tests.support.proxy.live import client_that_is_killed


def num_busy(url: str) -> int:
    return sum(
        slot["is_processing"] for slot in httpx.get(f"{url}/slots", timeout=PATIENCE_S).json()
    )


def metric(url: str, name: str) -> float:
    for line in httpx.get(f"{url}/metrics", timeout=PATIENCE_S).text.splitlines():
        if line.startswith(f"llamacpp:{name} "):
            return float(line.split()[1])
    raise AssertionError(f"the server has no metric {name}")


def num_written(url: str) -> float:
    """Tokens of the requests that have ended, in whatever way."""
    return metric(url, "tokens_predicted_total")


def is_writing(url: str) -> bool:
    """More than one token was decoded: it is past its prompt, and it is not a forced token."""
    slots = httpx.get(f"{url}/slots", timeout=PATIENCE_S).json()
    busy = [slot for slot in slots if slot["is_processing"]]
    return any(slot["next_token"][0]["n_decoded"] > 1 for slot in busy)


def wait_until_writing(url: str) -> None:
    # llama.cpp cannot be interrupted while it reads a prompt, which is one batch.
    deadline = time.monotonic() + PATIENCE_S
    while not is_writing(url):
        assert time.monotonic() < deadline, "the model never wrote"
        time.sleep(0.02)


def wait_until_idle(*urls: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while any(num_busy(url) for url in urls):
        assert time.monotonic() < deadline, "a model is still busy"
        time.sleep(0.02)
    # And it stays so: nothing more is sent to either.
    time.sleep(0.3)
    assert not any(num_busy(url) for url in urls)
    assert all(metric(url, "requests_processing") == 0 for url in urls)


# Greedily, each model repeats itself up to the limit: 700 tokens. More could be too long for the
# teacher, so nothing would be sent before a verdict.
QUESTIONS = {
    "student": "Write the numbers from 1 to 1000, separated by commas.",
    "teacher": "Repeat the word yes a thousand times.",
}


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("busy", ["student", "teacher"])
def test_killing_the_client_leaves_both_models_idle(
    stream: bool, busy: str, base_url: str, student_url: str, teacher_url: str
) -> None:
    body = {
        "model": "motab/demo",
        "messages": [{"role": "user", "content": QUESTIONS[busy]}],
        "temperature": 0.0,
        "max_tokens": 700,
        "stream": stream,
        "motab": {
            "teacher_temperature": 0.0,
            "max_total_tokens": 700,
            # The teacher is made to write by a boundary that nothing passes.
            "base_threshold": 1.0 if busy == "teacher" else 0.0,
            "entropy_scale": 0.0,
            # A delimiter that never comes keeps the student writing.
            "delimiter": " " if busy == "teacher" else "\u2603",
        },
    }
    writer = student_url if busy == "student" else teacher_url
    before = num_written(writer)
    with client_that_is_killed(f"{base_url}/chat/completions", body):
        wait_until_writing(writer)
    wait_until_idle(student_url, teacher_url)
    # Some ten tokens. A limit in seconds would be one that a busy machine exceeds.
    assert num_written(writer) - before < 300
