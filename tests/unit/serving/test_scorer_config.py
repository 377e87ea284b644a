"""A pair's own scorer, as the configuration names it."""

import logging
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from proxy.config import load_config
from proxy.errors import ConfigError
from proxy.secrets import masked
from proxy.serving.reload import reread
from proxy.serving.supervisor import supervise
from tests.support.proxy.configs import FILE, changed, complaint, loaded, written

A, B = "http://10.0.0.1:9000", "http://10.0.0.2:9000/prm"
WHERE = "models.motab/pair.scoring"


def scored_by(**scoring: Any) -> dict[str, Any]:
    return changed("models motab/pair scoring", scoring)


def test_a_scorer_is_one_url_or_several_with_the_settings_of_a_server(tmp_path: Path) -> None:
    config = loaded(scored_by(http=f"{A}/"), tmp_path)
    (name,) = config.scorers
    scorer = config.scorers[name]
    assert (name, scorer.urls) == ("scoring/motab/pair", [A])
    assert (scorer.max_concurrent, scorer.gpus, scorer.answer_timeout_s) == (64, 1, 600)
    assert (scorer.retries.attempts, scorer.retries.total_s) == (4, 60)
    keys = {"max_concurrent": 8, "gpus": 0.5, "answer_timeout_s": 9, "retries": {"attempts": 1}}
    scorer = loaded(scored_by(http=[A, B], **keys), tmp_path).scorers[name]
    assert scorer.urls == [A, B]
    assert (scorer.max_concurrent, scorer.gpus, scorer.answer_timeout_s) == (8, 0.5, 9)
    assert loaded(FILE, tmp_path).scorers == {}


@pytest.mark.parametrize(
    ("scoring", "sentence"),
    [
        ({}, ".http is missing"),
        ({"http": []}, ".http: list should have at least 1 item after validation, not 0"),
        ({"http": 7}, ".http: must be a URL such as http://127.0.0.1:9000, or a list of them"),
        ({"http": [7]}, ".http.0: input should be a valid string"),
        ({"http": "localhost:1"}, ".http: must be a URL such as http://127.0.0.1:30011, not"),
        ({"http": f"{A}?key=x"}, ".http: must be a URL without a query (?) and a fragment (#)"),
        ({"http": [A, f"{A}/"]}, f".http: has '{A}' twice: name every replica once"),
        ({"http": A, "key": "x"}, ".key is not a known field"),
        ({"http": A, "model": "x"}, ".model is not a known field"),
        ({"http": A, "max_concurrent": 0}, ".max_concurrent"),
        ({"http": A, "api_key": "caf\u00e9"}, ".api_key: must be printable ASCII"),
        (
            {"http": "http://user:word@a:1", "api_key": "a-key-of-mine"},
            ".api_key: http has a user, who is sent in the key's place: leave one out",
        ),
    ],
)
def test_wrong_settings_are_named(scoring: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    assert complaint(scored_by(**scoring), tmp_path).startswith(WHERE + sentence)


def test_an_upstream_cannot_have_the_scorers_name(tmp_path: Path) -> None:
    content = scored_by(http=A)
    content["upstreams"]["scoring/motab/pair"] = content["upstreams"]["large"]
    sentence = "upstreams.scoring/motab/pair: that name stands for the model's scorer"
    assert complaint(content, tmp_path) == sentence


def test_its_key_comes_from_the_environment_and_is_shown_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OF_THE_SCORER", "a-long-word-of-mine")
    config = loaded(scored_by(http=A, api_key="${OF_THE_SCORER}"), tmp_path)
    scorer = config.scorers["scoring/motab/pair"]
    assert scorer.api_key == "a-long-word-of-mine"
    assert "a-long-word-of-mine" not in masked("it says a-long-word-of-mine") + repr(config)
    loaded(scored_by(http="http://user:another-word@a:1"), tmp_path)
    assert "another-word" not in masked("it says another-word")


def test_its_requests_are_divided_among_the_workers(tmp_path: Path) -> None:
    config = loaded(scored_by(http=A, max_concurrent=1), tmp_path)
    with pytest.raises(ConfigError, match=r"pair\.scoring\.max_concurrent: is divided among"):
        supervise(config, 0.0, 2, ("motab.worker", "math"))


def test_a_reload_takes_its_addresses_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    current = loaded(scored_by(http=A), tmp_path)
    after = scored_by(http=[A, B])
    path = written(after, tmp_path / "motab.yaml")
    found = reread(lambda: load_config(path), current)
    assert found is not None
    assert found.scorers["scoring/motab/pair"].urls == [A, B]
    assert not caplog.records
    after = deepcopy(after)
    after["models"]["motab/pair"]["scoring"]["max_concurrent"] = 3
    path = written(after, tmp_path / "motab.yaml")
    found = reread(lambda: load_config(path), current)
    assert found is not None
    assert found.scorers["scoring/motab/pair"].max_concurrent == 64
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert f"{WHERE}.max_concurrent" in record.getMessage()
