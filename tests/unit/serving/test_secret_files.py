"""Tests variables of a configuration whose values are in files, as container engines mount them."""

from pathlib import Path

import pytest

from proxy.secrets import masked
from tests.support.proxy.configs import changed, complaint, loaded

KEYS = changed("server api_keys", ["${MOTAB_TEST_KEY}"])


@pytest.fixture
def secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "secret"
    monkeypatch.setenv("MOTAB_TEST_KEY_FILE", str(path))
    return path


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_variable_that_is_not_set_is_read_from_the_file_that_another_names(
    end: str, secret: Path, tmp_path: Path
) -> None:
    secret.write_bytes(f"s3cret-of-a-file{end}".encode())
    assert loaded(KEYS, tmp_path).server.api_keys == ("s3cret-of-a-file",)


def test_blanks_around_a_secret_are_its_own(secret: Path, tmp_path: Path) -> None:
    secret.write_text(" s3cret of a file \n")
    assert loaded(KEYS, tmp_path).server.api_keys == (" s3cret of a file ",)


def test_a_secret_of_a_file_is_a_part_of_a_text_and_hidden_wherever_it_stands(
    secret: Path, tmp_path: Path
) -> None:
    secret.write_text("an-unguessable-part\n")
    content = changed("upstreams large chat_template", "before ${MOTAB_TEST_KEY} after")
    template = loaded(content, tmp_path).upstreams["large"].chat_template
    assert template == "before an-unguessable-part after"
    assert masked(template) == "before *** after"


def test_a_variable_and_its_file_at_once_are_refused(
    secret: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret.write_text("s3cret-of-a-file")
    monkeypatch.setenv("MOTAB_TEST_KEY", "another")
    assert complaint(KEYS, tmp_path) == (
        "server.api_keys[0]: the environment variables MOTAB_TEST_KEY and MOTAB_TEST_KEY_FILE"
        " are both set: unset one"
    )


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "No such file or directory"),
        (b"", "the file is empty"),
        (b"\n", "the file is empty"),
        (b"one\ntwo\n", "must hold one line, the secret"),
        (b"\xff\xfe", "not UTF-8 text (invalid start byte)"),
        (b"x" * 10_001, "more than 10000 characters, so it is no secret"),
    ],
)
def test_a_file_that_holds_no_secret_is_named_with_the_key_of_the_configuration(
    content: bytes | None, why: str, secret: Path, tmp_path: Path
) -> None:
    if content is not None:
        secret.write_bytes(content)
    start = f"server.api_keys[0]: MOTAB_TEST_KEY_FILE: {secret}: "
    assert complaint(KEYS, tmp_path) == start + why
