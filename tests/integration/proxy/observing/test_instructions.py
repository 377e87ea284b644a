"""Tests that a token and a plain call execute no more instructions than they did."""

import sys

import pytest

from benchmarks.instructions import MOST_A_CALL, MOST_A_TOKEN, of_a_plain_call, of_a_token

pytestmark = pytest.mark.skipif(
    sys.version_info[:2] != (3, 11), reason="other versions of Python have other instructions"
)


@pytest.mark.timeout(120)
async def test_a_plain_call_takes_no_more_instructions() -> None:
    assert await of_a_plain_call() <= MOST_A_CALL


@pytest.mark.timeout(120)
async def test_a_token_takes_no_more_instructions() -> None:
    assert await of_a_token("sglang") <= MOST_A_TOKEN["sglang"]
