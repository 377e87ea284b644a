"""Gives the tests a scripted training environment."""

from pathlib import Path

import pytest

from tests.support.trainer.scripted import ScriptedTrainer


@pytest.fixture
def scripted(tmp_path: Path) -> ScriptedTrainer:
    return ScriptedTrainer(tmp_path)
