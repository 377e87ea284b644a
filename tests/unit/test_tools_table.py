"""The table of docs/your-tool.md speaks of the versions that `make test-clients` installs."""

from typing import Any

import pytest

from tests.clients.table import Found, documented_versions, locked_versions, row_of


def test_the_versions_of_the_table_are_those_of_the_locks() -> None:
    documented = documented_versions()
    assert len(documented) >= 10
    # Where both lock a package, it is a tool of the second, and only a part of curator.
    locked = locked_versions("curator", "clients")
    assert documented == {name: locked.get(name) for name in documented}


@pytest.mark.parametrize(("traces", "trace"), [("xx", "kept"), ("x-", "not in: b"), ("--", "lost")])
def test_a_row_says_what_a_tool_got(traces: str, trace: str) -> None:
    answers: dict[str, dict[str, Any]] = {
        way: {"text": "t", "motab": {"spans": []} if kept == "x" else None}
        for way, kept in zip("ab", traces, strict=True)
    }
    plain = row_of("a-tool", Found("1.2", answers, {}))
    assert plain == f"| a-tool | 1.2 | a, b | nothing | {trace} |"
    refused = row_of("a-tool", Found("1.2", answers, {"parse": "tools"}))
    assert refused == f"| a-tool | 1.2 | a, b | parse (`tools`) | {trace} |"
