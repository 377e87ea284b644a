"""Gives the tests a tiny model."""

from pathlib import Path

import pytest

from tests.support.trainer.llamafactory import in_trainer


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 115,392 parameters with a byte-level tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    in_trainer("make_model.py", folder)
    return folder
