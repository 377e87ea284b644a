"""Tests how a configuration file is read."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from proxy.config import (
    EmbeddedConfig,
    LlamaCppConfig,
    VllmConfig,
    load_config,
)
from proxy.errors import ConfigError
from tests.support.proxy.configs import FILE, FULL, changed, complaint, loaded, without


def test_a_short_file_is_completed_with_the_defaults(tmp_path: Path) -> None:
    config = loaded(FILE, tmp_path)
    server = config.server
    assert (server.host, server.port, server.api_keys) == ("127.0.0.1", 8800, ())
    assert (server.max_concurrent, server.max_body_bytes) == (256, 4194304)
    assert (server.max_n, server.max_total_tokens, server.request_timeout_s) == (64, 131072, 3600)
    small, large = config.upstreams["small"], config.upstreams["large"]
    assert isinstance(small, LlamaCppConfig)
    assert (small.max_concurrent, small.api_key, small.chat_template) == (64, None, None)
    assert (small.retries.attempts, small.retries.total_s) == (4, 60)
    assert (small.stall_timeout_s, small.answer_timeout_s) == (120, 600)
    assert isinstance(large, VllmConfig)
    assert large.base_url == "http://127.0.0.1:30011"  # a slash at the end does no harm
    assert config.models["motab/pair"].params == {}


def test_every_key_is_read_and_variables_are_expanded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("ONE", "1"), ("TWO", "2"), ("HOST", "example.org")):
        monkeypatch.setenv(name, value)
    config = loaded(FULL, tmp_path)
    server = config.server
    assert server.api_keys == ("1", "key-2-1")
    assert (server.host, server.port, server.max_concurrent) == ("0.0.0.0", 8801, 9)
    assert (server.max_body_bytes, server.max_n) == (1024, 5)
    assert (server.max_total_tokens, server.request_timeout_s) == (4096, 1.5)
    small, large = config.upstreams["small"], config.upstreams["large"]
    assert isinstance(small, EmbeddedConfig)
    assert (small.model, small.slots, small.context_tokens) == ("package:x", 2, 512)
    assert small.max_concurrent == 3
    assert isinstance(large, VllmConfig)
    assert (large.base_url, large.api_key) == ("https://example.org:30011", "1")
    assert large.chat_template == "{{ messages }}"
    assert (large.retries.attempts, large.retries.total_s) == (1, 2.5)
    assert (large.stall_timeout_s, large.answer_timeout_s) == (7, 8.5)
    assert config.models["motab/pair"].params == {"base_threshold": 0.3, "revise": "2"}


def test_a_variables_value_is_not_expanded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUTER", "${INNER}")
    config = loaded(changed("server api_keys", ["${OUTER}"]), tmp_path)
    assert config.server.api_keys == ("${INNER}",)


def test_a_variable_can_hold_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "9001")
    assert loaded(changed("server port", "${PORT}"), tmp_path).server.port == 9001


@pytest.mark.parametrize("value", ["$HOME", "$$", "${}", "${1X}", "a$b"])
def test_a_dollar_that_names_no_variable_stands_for_itself(value: str, tmp_path: Path) -> None:
    assert loaded(changed("server api_keys", [value]), tmp_path).server.api_keys == (value,)


@pytest.mark.parametrize(
    ("path", "value", "where"),
    [
        ("server api_keys", ["ok", "${MOTAB_NOT_SET}"], "server.api_keys[1]"),
        ("upstreams large api_key", "${MOTAB_NOT_SET}", "upstreams.large.api_key"),
        (
            "models motab/pair params",
            {"revise": "x${MOTAB_NOT_SET}"},
            "models.motab/pair.params.revise",
        ),
    ],
)
def test_a_variable_that_is_not_set_is_named_with_its_place(
    path: str, value: object, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MOTAB_NOT_SET", raising=False)
    sentence = complaint(changed(path, value), tmp_path)
    assert sentence == f"{where}: the environment variable MOTAB_NOT_SET is not set"


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("upstreams", "upstreams is missing"),
        ("models", "models is missing"),
        ("upstreams small kind", "upstreams.small.kind is missing"),
        ("upstreams small base_url", "upstreams.small.base_url is missing"),
        ("upstreams large model", "upstreams.large.model is missing"),
        ("models motab/pair student", "models.motab/pair.student is missing"),
    ],
)
def test_a_missing_key_is_named(path: str, sentence: str, tmp_path: Path) -> None:
    assert complaint(without(path), tmp_path) == sentence


def test_a_key_and_a_user_at_once_are_refused_without_a_word_of_either(tmp_path: Path) -> None:
    walled = {"kind": "vllm", "model": "m", "base_url": "http://someone:pa55w0rd@host"}
    sentence = complaint(changed("upstreams large", {**walled, "api_key": "k"}), tmp_path)
    assert sentence.startswith("upstreams.large.api_key: base_url has a user")
    assert "pa55w0rd" not in sentence


def test_a_wrong_url_is_shown_without_its_user(tmp_path: Path) -> None:
    for url in ("ftp://someone:pa55w0rd@host", "http://someone:pa55w0rd@host/v1"):
        sentence = complaint(changed("upstreams large base_url", url), tmp_path)
        assert "://host" in sentence
        assert "pa55w0rd" not in sentence


@pytest.mark.parametrize("rest", ["?api-key=pa55w0rd", "/x?pa55w0rd", "#pa55w0rd"])
@pytest.mark.parametrize("kind", ["vllm", "litellm"])
def test_a_url_with_a_query_is_refused_without_showing_it(
    tmp_path: Path, kind: str, rest: str
) -> None:
    upstream = {"kind": kind, "model": "m", "base_url": f"http://host{rest}"}
    sentence = complaint(changed("upstreams large", upstream), tmp_path)
    assert "must be a URL without a query (?) and a fragment (#)" in sentence
    assert "pa55w0rd" not in sentence


def test_of_several_complaints_the_first_is_told_and_the_others_counted(tmp_path: Path) -> None:
    content = changed("server", {"prot": 1, "port": "x"})
    sentence = complaint(content, tmp_path)
    assert sentence.endswith(" (and 1 more)")


@pytest.mark.parametrize("content", ["", "[]", "text", "3"])
def test_a_file_that_holds_no_sections_is_told_what_it_must_hold(
    content: str, tmp_path: Path
) -> None:
    assert complaint(content, tmp_path) == "must hold the keys server, upstreams and models"


def test_broken_yaml_is_told_in_one_line_with_its_place(tmp_path: Path) -> None:
    sentence = complaint("server: {port: 1\nupstreams: [", tmp_path)
    assert sentence.startswith("not valid YAML: ")
    assert "line 2" in sentence


def test_yaml_that_would_run_code_is_refused(tmp_path: Path) -> None:
    sentence = complaint("!!python/object/apply:os.getcwd []", tmp_path)
    assert sentence.startswith("not valid YAML: could not determine a constructor")


def test_a_file_that_is_no_text_is_told_so(tmp_path: Path) -> None:
    path = tmp_path / "motab.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value) == f"{path}: not UTF-8 text (invalid start byte)"


def test_a_file_that_is_not_there_or_is_a_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "none.yaml")
    assert str(caught.value) == f"{tmp_path / 'none.yaml'}: No such file or directory"
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path)
    assert str(caught.value) == f"{tmp_path}: Is a directory"


@pytest.mark.parametrize(
    "value", ["!!binary aGk=", "!!set {a, b}", "36893488147419103232"], ids=["bytes", "set", "int"]
)
def test_a_yaml_value_that_json_does_not_have_is_refused_with_its_place(
    value: str, tmp_path: Path
) -> None:
    marked = yaml.safe_dump(changed("models motab/pair params", {"revise": "HERE"}))
    sentence = complaint(marked.replace("HERE", value), tmp_path)
    assert sentence.startswith("models.motab/pair.params: revise")


def test_a_key_that_is_no_text_is_refused_in_a_sentence(tmp_path: Path) -> None:
    sentence = complaint(changed("models", {3: {"student": "small", "teacher": "large"}}), tmp_path)
    assert sentence.startswith("models.3")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_without_keys_loopback_addresses_are_taken(host: str, tmp_path: Path) -> None:
    assert loaded(changed("server host", host), tmp_path).server.host == host


def test_with_keys_any_address_is_taken(tmp_path: Path) -> None:
    content = changed("server", {"host": "0.0.0.0", "api_keys": ["k"]})
    assert loaded(content, tmp_path).server.host == "0.0.0.0"


def test_the_command_lines_address_replaces_the_files_and_nothing_else(tmp_path: Path) -> None:
    config = loaded(changed("server max_n", 3), tmp_path)
    other = config.with_server({"host": "::1", "port": 0})
    assert (other.server.host, other.server.port, other.server.max_n) == ("::1", 0, 3)
    assert other.upstreams == config.upstreams
    assert other.models == config.models
    assert config.server.port == 8800
    assert config.with_server({}) == config


@pytest.mark.parametrize(
    ("value", "rotate_mb"),
    [
        ("out/records.jsonl", 1024),
        ({"file": "out/records.jsonl"}, 1024),
        ({"file": "out/records.jsonl", "rotate_mb": 0.5}, 0.5),
        ({"file": "out/records.jsonl", "rotate_mb": None}, None),
    ],
)
def test_records_are_a_path_or_a_path_with_a_size(
    value: object, rotate_mb: float | None, tmp_path: Path
) -> None:
    assert loaded(FILE, tmp_path).server.records is None
    records = loaded(changed("server records", value), tmp_path).server.records
    assert records is not None
    assert (records.file, records.rotate_mb) == ("out/records.jsonl", rotate_mb)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"port": 65536}, "server.port: input should be less than or equal to 65535"),
        (
            {"host": "0.0.0.0"},
            "server: without api_keys the server listens on loopback only, not on '0.0.0.0'",
        ),
    ],
)
def test_the_command_lines_address_is_checked_like_the_files(
    changes: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    config = loaded(FILE, tmp_path)
    with pytest.raises(ConfigError) as caught:
        config.with_server(changes)
    assert str(caught.value) == sentence


def test_keys_do_not_show_in_a_complaint_about_another_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    content = changed("server", {"api_keys": ["${SECRET}"], "prot": 1})
    assert "hunter2" not in complaint(content, tmp_path)
