"""Tests the configurations in `configs/`."""

import re
from itertools import takewhile
from pathlib import Path

import pytest

from proxy.backends.base import Message
from proxy.backends.tokens.chat_template import ChatTemplate
from proxy.config import (
    Config,
    load_config,
)
from tests.support.proxy.configs import CONFIGS


@pytest.fixture
def bundled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Config:
    """One of the configurations that come with motab, with every variable that it names set."""
    path: Path = request.param
    for name in re.findall(r"\$\{(\w+)\}", path.read_text(encoding="utf-8")):
        monkeypatch.setenv(name, f"value-of-{name}")
    return load_config(path)


@pytest.mark.parametrize("bundled", CONFIGS, ids=lambda path: path.name, indirect=True)
def test_a_bundled_configuration_loads_and_its_templates_end_where_the_answer_begins(
    bundled: Config,
) -> None:
    talk = tuple(map(Message, ("system", "user", "assistant", "user"), ("Be.", "A?", "B.", "C?")))
    for upstream in bundled.upstreams.values():
        if upstream.chat_template is not None:
            rendered = ChatTemplate(upstream.chat_template).render(talk)
            assert "B." in rendered
            answer = rendered.rpartition("C?")[2]
            assert answer.endswith(("assistant\n", "model\n", "</think>\n\n", "<|message|>"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_a_bundled_configuration_opens_with_the_command_that_runs_it(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = " ".join(takewhile(lambda line: line.startswith("#"), lines))
    if path.name.startswith("compose_"):
        mounted = (path.parents[1] / "compose.yaml").read_text(encoding="utf-8")
        assert f"./configs/{path.name}:/etc/motab/config.yaml" in mounted
        assert "docker compose up" in comment
    else:
        assert re.findall(r"motab serve --config (\S+)", comment) == [f"configs/{path.name}"]
