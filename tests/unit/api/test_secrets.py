"""Tests the hiding of secrets in whatever spelling and however much of them is quoted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.config import Config
from proxy.errors import UpstreamFailed
from proxy.secrets import (
    excerpt,
    hide,
    keys_in_url,
    masked,
    secrets_of_environment,
    secrets_of_url,
    without_userinfo,
)
from synth_client.asking.errors import SynthesisError
from synth_client.errors import RunAborted

KEY = 'sk-test/3f9 0"71c+b2'


@pytest.fixture(autouse=True)
def _hidden() -> None:
    hide([KEY, "none", *secrets_of_url("https://reader:a%2Fb%40c9f2e@host.example/v1")])


@pytest.mark.parametrize(
    "quoted",
    [
        KEY,
        f"Bearer {KEY}.",
        "sk-test%2F3f9%200%2271c%2Bb2",
        r'{"key": "sk-test/3f9 0\"71c+b2"}',
        KEY[:-3],
        f"{KEY[:10]}...",
        "a%2Fb%40c9f2e",
        "a/b@c9f2e",
        "reader:a%2Fb%40c9f2e@host",
        "Basic cmVhZGVyOmEvYkBjOWYyZQ==",
    ],
)
def test_no_half_of_a_secret_is_shown(quoted: str) -> None:
    shown = masked(f"before {quoted} after")
    assert shown.startswith("before ")
    assert "***" in shown
    for part in (KEY[:10], "c9f2e", "b2", "cmVhZGVy"):
        assert part not in shown


def test_placeholders_and_other_words_stay() -> None:
    text = "none, reader, sk-test, host.example, sk-other/3f9"
    assert masked(text) == text


@given(st.text(max_size=60), st.integers(0, 600))
def test_an_excerpt_never_ends_inside_a_key(around: str, num_before: int) -> None:
    assert KEY[:6] not in excerpt("x" * num_before + KEY + around).replace(around, "")


def test_errors_of_the_proxy_and_of_the_client_hide_them() -> None:
    assert KEY not in str(UpstreamFailed("up", f"401: {KEY}"))
    assert KEY not in str(RunAborted(f"401: {KEY}"))
    refused = SynthesisError(f"key {KEY}", status=401)
    assert KEY not in f"{refused} {refused.message} {refused!r} {refused.__reduce__()}"


def test_a_configuration_hides_its_own_and_the_environments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SOME_HOST_API_KEY", "env-5d2a8c1f")
    monkeypatch.setenv("SOME_HOST_REGION", "env-region-north")
    found = Config.model_validate(
        {
            "server": {"api_keys": ["client-41bb09e"]},
            "upstreams": {
                "a": {
                    "kind": "vllm",
                    "model": "m",
                    "base_url": "http://h",
                    "api_key": "up-77e0c2d1",
                },
                "b": {"kind": "sglang", "model": "m", "base_url": "http://someone:pa55w0rd@h"},
            },
            "models": {"pair": {"student": "a", "teacher": "b"}},
        }
    )
    secrets = ("client-41bb09e", "up-77e0c2d1", "someone", "pa55w0rd", "env-5d2a8c1f")
    assert not any(secret in repr(found) for secret in secrets)
    text = masked(" ".join((*secrets, "someone:pa55w0rd@h", "env-region-north")))
    # A name of seven letters alone is a word.
    assert text == "*** *** someone *** *** ***h env-region-north"
    assert "env-region-north" not in set(secrets_of_environment())


@pytest.mark.parametrize(
    ("url", "keys"),
    [
        ("https://gateway.example/v1/4f9c0d7e21ab48d3/openai", ["4f9c0d7e21ab48d3"]),
        ("https://gateway.example/serving-endpoints/v1?key=a%20b&x=1", ["a b", "1"]),
        ("https://user:4f9c0d7e21ab48d3@gateway.example/v1", []),
    ],
)
def test_what_may_be_a_key_in_a_path_or_query_is_known(url: str, keys: list[str]) -> None:
    assert sorted(keys_in_url(url)) == sorted(keys)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://user:pass@host:1/x?y", "http://host:1/x?y"),
        ("http://user@[::1]:1", "http://[::1]:1"),
        ("http://host", "http://host"),
        ("no url", "no url"),
    ],
)
def test_a_url_is_shown_without_its_user(url: str, shown: str) -> None:
    assert without_userinfo(url) == shown
