"""Tests which values a configuration may have."""

from pathlib import Path
from typing import Any

import pytest

from proxy.config import (
    LiteLLMConfig,
)
from tests.support.proxy.configs import changed, complaint, loaded


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("serve", {}, "serve is not a known field"),
        ("server prot", 1, "server.prot is not a known field"),
        ("upstreams small basurl", "x", "upstreams.small.basurl is not a known field"),
        ("upstreams large slots", 2, "upstreams.large.slots is not a known field"),
        ("models motab/pair treacher", "x", "models.motab/pair.treacher is not a known field"),
        (
            "models motab/pair params",
            {"gama": 1},
            "models.motab/pair.params: gama is not a known field",
        ),
        (
            "models motab/pair params",
            {"base_threshold": 3.0},
            "models.motab/pair.params: base_threshold must be in [0, 1], not 3.0",
        ),
        (
            "models motab/pair params",
            {"max_step_tokens": "many"},
            "models.motab/pair.params: max_step_tokens: input should be a valid integer",
        ),
        (
            "models motab/pair params",
            [],
            "models.motab/pair.params: input should be a valid dictionary",
        ),
        ("server port", 65536, "server.port: input should be less than or equal to 65535"),
        ("server port", -1, "server.port: input should be greater than or equal to 0"),
        ("server max_concurrent", 0, "server.max_concurrent: input should be greater than or "),
        ("server max_body_bytes", 0, "server.max_body_bytes: input should be greater than or "),
        ("server max_n", 0, "server.max_n: input should be greater than or equal to 1"),
        ("server max_total_tokens", 0, "server.max_total_tokens: input should be greater than "),
        ("server request_timeout_s", 0, "server.request_timeout_s: input should be greater than 0"),
        ("server records", "", "server.records.file: string should have at least 1 character"),
        ("server records", 1, "server.records: must be a file's path, or {file: PATH, rotate_mb: "),
        ("server records", {}, "server.records.file is missing"),
        (
            "server records",
            {"file": "x", "rotate_mb": 0},
            "server.records.rotate_mb: input should be greater than 0",
        ),
        ("server records", {"file": "x", "size": 1}, "server.records.size is not a known field"),
        ("server health_port", 65536, "server.health_port: input should be less than or equal to "),
        ("server max_connections", 0, "server.max_connections: input should be greater than or "),
        (
            "server allowed_hosts",
            ["gpu1.lan:8800"],
            "server.allowed_hosts: must be names or addresses without a port, such as gpu1.lan",
        ),
        ("server allowed_hosts", ["*"], "server.allowed_hosts: must be names or addresses without"),
        ("server host", 1, "server.host: input should be a valid string"),
        ("server api_keys", "key", "server.api_keys: input should be a valid tuple"),
        ("server api_keys", [""], "server.api_keys: an API key must not be empty"),
        (
            "server host",
            "0.0.0.0",
            "server: without api_keys the server listens on loopback only, not on '0.0.0.0'",
        ),
        (
            "upstreams small kind",
            "lamacpp",
            "upstreams.small.kind: must be 'llamacpp', ",
        ),
        ("upstreams small", "x", "upstreams.small: input should be a valid dictionary or object"),
        ("upstreams", {}, "upstreams: dictionary should have at least 1 item after validation"),
        ("models", {}, "models: dictionary should have at least 1 item after validation"),
        ("models", [], "models: input should be a valid dictionary"),
        (
            "models motab/pair",
            {"student": "tiny", "teacher": "large"},
            "models.motab/pair.student: no upstream 'tiny'; there are small, large",
        ),
        (
            "models motab/pair",
            {"student": "small", "teacher": "huge"},
            "models.motab/pair.teacher: no upstream 'huge'; there are small, large",
        ),
        (
            "upstreams small base_url",
            "http://h:1/v1",
            "upstreams.small.base_url: is the server's root: leave '/v1' out of 'http://h:1/v1'",
        ),
        (
            "upstreams large base_url",
            "http://h:1/api/v1/",
            "upstreams.large.base_url: is the server's root: leave '/v1' out of 'http://h:1/api/v1/",
        ),
        (
            "upstreams small base_url",
            "127.0.0.1:30012",
            "upstreams.small.base_url: must be a URL such as http://127.0.0.1:30011, not '127.",
        ),
        ("upstreams small base_url", "ftp://h", "upstreams.small.base_url: must be a URL such as "),
        ("upstreams small base_url", "http://", "upstreams.small.base_url: must be a URL such as "),
        (
            "upstreams large tokenizer",
            "",
            "upstreams.large.tokenizer: string should have at least 1 character",
        ),
        (
            "upstreams large",
            {"kind": "openai", "base_url": "http://h", "model": "m", "tokenizer": "server"},
            "upstreams.large.tokenizer: such a server gives no tokens: name the model's tokenizer",
        ),
        (
            "upstreams small max_concurrent",
            0,
            "upstreams.small.max_concurrent: input should be greater than or equal to 1",
        ),
        ("upstreams small gpus", 0, "upstreams.small.gpus: input should be greater than 0"),
        (
            "upstreams small retries",
            {"attempts": 0},
            "upstreams.small.retries.attempts: input should be greater than or equal to 1",
        ),
        (
            "upstreams small stall_timeout_s",
            0,
            "upstreams.small.stall_timeout_s: input should be greater than 0",
        ),
        (
            "upstreams small retries",
            {"total_s": 0},
            "upstreams.small.retries.total_s: input should be greater than 0",
        ),
        (
            "upstreams small",
            {"kind": "embedded", "model": "m", "slots": 0},
            "upstreams.small.slots: input should be greater than or equal to 1",
        ),
        (
            "upstreams small",
            {"kind": "embedded", "model": "m", "context_tokens": 15},
            "upstreams.small.context_tokens: input should be greater than or equal to 16",
        ),
    ],
)
def test_a_bad_value_is_told_with_its_path_and_what_would_be_right(
    path: str, value: object, sentence: str, tmp_path: Path
) -> None:
    assert complaint(changed(path, value), tmp_path).startswith(sentence)


@pytest.mark.parametrize("port", ["port", "99999"])
def test_a_url_with_an_impossible_port_is_refused(port: str, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{port}"
    sentence = complaint(changed("upstreams small base_url", url), tmp_path)
    assert sentence.startswith("upstreams.small.base_url: ")


HOSTED = {"kind": "litellm", "model": "groq/openai/gpt-oss-120b"}


def test_a_hosted_api_needs_a_model_only(tmp_path: Path) -> None:
    upstream = loaded(changed("upstreams large", HOSTED), tmp_path).upstreams["large"]
    assert isinstance(upstream, LiteLLMConfig)
    assert (upstream.api_key, upstream.base_url, upstream.continuation) == (None, None, None)


def test_a_hosted_apis_url_may_end_in_v1(tmp_path: Path) -> None:
    hosted = {**HOSTED, "base_url": "http://127.0.0.1:1/v1/"}
    upstream = loaded(changed("upstreams large", hosted), tmp_path).upstreams["large"]
    assert isinstance(upstream, LiteLLMConfig)
    assert upstream.base_url == "http://127.0.0.1:1/v1"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("continuation", "guess"),
        ("reasoning", True),
        ("base_url", "127.0.0.1"),
        ("api_key", ""),
        ("chat_template", "{{ messages }}"),
    ],
)
def test_a_hosted_apis_wrong_key_is_named(key: str, value: Any, tmp_path: Path) -> None:
    content = changed("upstreams large", {**HOSTED, key: value})
    assert complaint(content, tmp_path).startswith(f"upstreams.large.{key}: ")
