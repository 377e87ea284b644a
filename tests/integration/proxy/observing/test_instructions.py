"""Tests that a token and a plain call execute no more instructions than they did."""

import sys

import pytest

from benchmarks.instructions import MOST_A_CALL, MOST_A_TOKEN, of_a_plain_call, of_a_token
from benchmarks.simulator.server import Kind

pytestmark = pytest.mark.skipif(
    sys.version_info[:2] != (3, 11), reason="other versions of Python have other instructions"
)


@pytest.mark.timeout(300)
async def test_a_plain_call_takes_no_more_instructions() -> None:
    assert await of_a_plain_call() <= MOST_A_CALL


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", MOST_A_TOKEN)
async def test_a_token_takes_no_more_instructions(kind: Kind) -> None:
    assert await of_a_token(kind) <= MOST_A_TOKEN[kind]
