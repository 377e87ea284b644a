"""A client that leaves costs nothing more: both models are idle within a second."""

import time

import httpx
import pytest

from tests.support.proxy.live import PATIENCE_S, client_that_is_killed


def num_busy(url: str) -> int:
    return sum(slot["is_processing"] for slot in httpx.get(f"{url}/slots", timeout=10).json())


def processing_metric(url: str) -> float:
    for line in httpx.get(f"{url}/metrics", timeout=10).text.splitlines():
        if line.startswith("llamacpp:requests_processing "):
            return float(line.split()[1])
    raise AssertionError("the server has no metric requests_processing")


def is_writing(url: str) -> bool:
    """More than one token was decoded: it is past its prompt, and it is not a forced token."""
    slots = httpx.get(f"{url}/slots", timeout=10).json()
    busy = [slot for slot in slots if slot["is_processing"]]
    return any(slot["next_token"][0]["n_decoded"] > 1 for slot in busy)


def wait_until_writing(url: str) -> None:
    # llama.cpp cannot be interrupted while it reads a prompt, which is one batch.
    deadline = time.monotonic() + PATIENCE_S
    while not is_writing(url):
        assert time.monotonic() < deadline, "the model never wrote"
        time.sleep(0.02)


def assert_idle_within_a_second(*urls: str) -> None:
    deadline = time.monotonic() + 1.0
    while any(num_busy(url) for url in urls):
        assert time.monotonic() < deadline, "a model is still busy"
        time.sleep(0.02)
    # And it stays so: nothing more is sent to either.
    time.sleep(0.3)
    assert not any(num_busy(url) for url in urls)
    assert all(processing_metric(url) == 0 for url in urls)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("busy", ["student", "teacher"])
def test_killing_the_client_leaves_both_models_idle(
    stream: bool, busy: str, base_url: str, student_url: str, teacher_url: str
) -> None:
    # The teacher is made to write by a boundary that nothing passes.
    threshold = 1.0 if busy == "teacher" else 0.0
    body = {
        "model": "motab/demo",
        "messages": [{"role": "user", "content": "Tell a very long story, step by step."}],
        "max_tokens": 3000,
        "stream": stream,
        # A delimiter that never comes keeps the student writing.
        "motab": {
            "base_threshold": threshold,
            "entropy_scale": 0.0,
            "delimiter": " " if busy == "teacher" else "\u2603",
        },
    }
    with client_that_is_killed(f"{base_url}/chat/completions", body):
        wait_until_writing(student_url if busy == "student" else teacher_url)
    assert_idle_within_a_second(student_url, teacher_url)
