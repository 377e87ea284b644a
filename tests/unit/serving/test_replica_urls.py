"""An upstream's addresses: one server or several replicas, and what a reload takes of them."""

import logging
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from proxy.config import Config, load_config
from proxy.serving.reload import reread
from tests.support.proxy.configs import FILE, complaint, loaded, without, written

A, B = "http://10.0.0.1:30012", "http://10.0.0.2:30012"


def with_urls(**keys: Any) -> dict[str, Any]:
    found = without("upstreams small base_url")
    found["upstreams"]["small"].update(keys)
    return found


def test_replicas_are_roots_as_a_single_server_is(tmp_path: Path) -> None:
    config = loaded(with_urls(base_urls=[f"{A}/", B]), tmp_path)
    assert config.upstreams["small"].urls == [A, B]
    assert config.upstreams["large"].urls == ["http://127.0.0.1:30011"]
    assert A not in repr(config)


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({}, "base_url is missing"),
        ({"base_urls": []}, "base_urls: list should have at least 1 item after validation, not 0"),
        (
            {"base_url": A, "base_urls": [B]},
            "base_url: is there as well as base_urls: leave one out",
        ),
        ({"base_urls": [A, f"{A}/"]}, f"base_urls: has '{A}' twice: name every replica once"),
        (
            {"base_urls": ["http://user:word@a:1", "http://other:word@a:1"]},
            "base_urls: has 'http://a:1' twice: name every replica once",
        ),
        (
            {"base_urls": [A, f"{B}/v1"]},
            f"base_urls.1: is the server's root: leave '/v1' out of '{B}/v1'",
        ),
        (
            {"base_urls": [A, "localhost:1"]},
            "base_urls.1: must be a URL such as http://127.0.0.1:30011, not 'localhost:1'",
        ),
        (
            {"base_urls": [A, "http://user:word@b:1"], "api_key": "a-key-of-mine"},
            "api_key: base_url has a user, who is sent in the key's place: leave one out",
        ),
    ],
)
def test_wrong_addresses_are_named(keys: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    assert complaint(with_urls(**keys), tmp_path) == f"upstreams.small.{sentence}"


@pytest.mark.parametrize("kind", ["litellm", "embedded"])
def test_what_is_no_server_of_ours_has_no_replicas(kind: str, tmp_path: Path) -> None:
    content = with_urls(base_urls=[A, B], kind=kind)
    sentence = "upstreams.small.base_urls is not a known field"
    assert complaint(content, tmp_path).startswith(sentence)


def reloaded(before: Any, after: Any, tmp_path: Path) -> Config | None:
    current = loaded(before, tmp_path)
    path = written(after, tmp_path / "motab.yaml")
    return reread(lambda: load_config(path), current)


def test_a_reload_takes_the_addresses_and_names_what_has_to_wait(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    after = with_urls(base_urls=[A, B])
    found = reloaded(FILE, after, tmp_path)
    assert found is not None
    assert found.upstreams["small"].urls == [A, B]
    assert not caplog.records
    changed = deepcopy(after)
    changed["upstreams"]["small"]["max_concurrent"] = 3
    changed["upstreams"]["more"] = changed["upstreams"]["large"]
    changed["server"] = {"max_n": 5}
    changed["upstreams"]["large"] = {**FILE["upstreams"]["large"], "kind": "sglang"}
    found = reloaded(FILE, changed, tmp_path)
    assert found is not None
    assert found.upstreams["small"].urls == [A, B]
    assert found.upstreams["small"].max_concurrent == 64
    assert found.upstreams["large"].kind == "vllm"
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    for path in ("server.max_n", "upstreams.small.max_concurrent", "upstreams.more"):
        assert path in record.getMessage()
    assert "upstreams.large.kind" in record.getMessage()


def test_a_broken_file_reloads_nothing_and_the_log_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert reloaded(FILE, with_urls(base_urls="x"), tmp_path) is None
    assert "nothing was reloaded" in caplog.text
    assert "upstreams.small.base_urls" in caplog.text
    assert caplog.records[0].levelno == logging.ERROR
