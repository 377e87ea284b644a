"""Lists every kind of server, and runs a test over all that do what it tests."""

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import pytest

from tests.support.servers import litellm, llamacpp, openai, sglang, vllm
from tests.support.servers.contract import ReadingContract, ScoringContract, WritingContract

SERVERS: Final = (vllm.SERVER, sglang.SERVER, llamacpp.SERVER, openai.SERVER, *litellm.SERVERS)
WRITING: Final = {server.kind: server.writing for server in SERVERS}
READING: Final = {server.kind: server.reading for server in SERVERS if server.reading is not None}
SCORING: Final = {server.kind: server.scoring for server in SERVERS if server.scoring is not None}

Part = TypeVar("Part", WritingContract, ReadingContract, ScoringContract)


def over(parts: Mapping[str, Part]) -> pytest.MarkDecorator:
    """Run the test over every server that has the part."""
    params = [pytest.param(part, id=kind) for kind, part in parts.items()]
    return pytest.mark.parametrize("server", params)


def over_cases(
    parts: Mapping[str, Part], cases: Callable[[Part], Mapping[str, Any]]
) -> pytest.MarkDecorator:
    """Run the test over every case that every such server describes."""
    params = [
        pytest.param(part, case, id=f"{kind}-{name}")
        for kind, part in parts.items()
        for name, case in cases(part).items()
    ]
    return pytest.mark.parametrize(("server", "case"), params)
