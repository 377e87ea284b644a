import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from motab.cli import app, main
from proxy import __version__
from tests.support.patience import PATIENCE_S
from tests.support.proxy.llama_cpp import READY, llama_cpp

MOTAB = Path(sys.executable).parent / "motab"
# What a user's terminal may set is taken out: a pipe has 80 columns and no colours.
ENV = {k: v for k, v in os.environ.items() if k not in {"COLUMNS", "FORCE_COLOR", "TERM"}}


def config_file(tmp_path: Path, base_url: str = "http://127.0.0.1:9", **upstream: Any) -> Path:
    """A configuration with one upstream, as JSON, which is YAML."""
    one = {"kind": "llamacpp", "base_url": base_url, "model": "m", **upstream}
    config = {
        "upstreams": {"only": {key: value for key, value in one.items() if value is not None}},
        "models": {"pair": {"student": "only", "teacher": "only"}},
    }
    path = tmp_path / "motab.yaml"
    path.write_text(json.dumps(config), encoding="utf-8")
    return path


def only_line(stderr: str) -> str:
    """The single line that must be printed, and nothing else."""
    assert stderr.endswith("\n")
    assert stderr.count("\n") == 1, stderr
    assert stderr.startswith("motab: ")
    return stderr.removeprefix("motab: ").rstrip("\n")


def failure(*arguments: str | Path) -> str:
    """The message of the installed command when it fails."""
    done = subprocess.run(
        [MOTAB, *arguments],
        env=ENV,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    return only_line(done.stderr)


Failing = Callable[..., str]


@pytest.fixture
def failing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Failing]:
    """The same without a process of its own, which takes most of a second."""
    logger = logging.getLogger("proxy")
    level = logger.level
    for name in set(os.environ) - set(ENV):
        monkeypatch.delenv(name)

    def run(*arguments: str | Path) -> str:
        monkeypatch.setattr(sys, "argv", ["motab", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        assert caught.value.code == 1
        out, err = capsys.readouterr()
        assert out == ""
        return only_line(err)

    yield run
    logger.setLevel(level)


def invoke(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, arguments)
    return result.exit_code, re.sub(r"\x1b\[[0-9;]*m", "", result.output)


def test_help_names_the_commands() -> None:
    code, output = invoke("--help")
    assert code == 0
    assert "serve" in output
    assert "--version" in output


@pytest.mark.parametrize(
    ("command", "options"),
    [
        (
            "serve",
            ("--config", "--host", "--port", "--wait", "--records", "--workers", "--log-format"),
        ),
        ("probe", ("--config", "--json", "--wait")),
    ],
)
def test_each_commands_help_names_its_options(command: str, options: tuple[str, ...]) -> None:
    code, output = invoke(command, "--help")
    assert code == 0
    for option in options:
        assert option in output


def test_version_says_the_version() -> None:
    assert invoke("--version") == (0, f"motab {__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["serve"], "--config"),
        (["serve", "--config", "x", "--port", "many"], "--port"),
        (["serve", "--config", "x", "--wait", "-1"], "--wait"),
        (["serve", "--config", "x", "--workers", "0"], "--workers"),
        (["serve", "--config", "x", "--colour"], "--colour"),
        (["serve", "--config", "x", "--log-format", "xml"], "--log-format"),
        (["sreve"], "sreve"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_use_names_what_is_wrong_and_exits_with_2(arguments: list[str], word: str) -> None:
    code, output = invoke(*arguments)
    assert code == 2
    assert word in output


def test_a_wrong_use_of_the_installed_command_exits_with_2() -> None:
    done = subprocess.run([MOTAB, "serve"], env=ENV, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--config" in done.stderr
    assert done.stdout == ""


def test_a_missing_file_is_told_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "none.yaml"
    assert failure("serve", "--config", path) == f"{path}: No such file or directory"


def test_an_unknown_key_is_told_in_one_line_with_its_path(tmp_path: Path, failing: Failing) -> None:
    path = config_file(tmp_path, prot=3)
    wanted = f"{path}: upstreams.only.prot is not a known field"
    assert failing("serve", "--config", path) == wanted


def test_an_open_address_without_keys_is_told_in_one_line(tmp_path: Path, failing: Failing) -> None:
    said = failing("serve", "--config", config_file(tmp_path), "--host", "0.0.0.0")
    assert said == "server: without api_keys the server listens on loopback only, not on '0.0.0.0'"


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_port_in_use_is_told_in_one_line(workers: str, tmp_path: Path, failing: Failing) -> None:
    path = config_file(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = failing("serve", "--config", path, "--port", str(port), "--workers", workers)
    assert said.startswith(f"cannot listen on 127.0.0.1:{port}: Address already in use")


def test_an_upstream_that_does_not_answer_is_told_in_one_line(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # taken, but not listening: connections are refused
        base_url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        said = failure("serve", "--config", config_file(tmp_path, base_url), "--port", "0")
    assert said.startswith(f"upstream 'only': no connection to {base_url}: ")


@pytest.mark.parametrize(
    ("path", "reply", "sentence"),
    [
        ("/props", {}, "upstream 'only': /props or /tokenize, if this is llama.cpp's own server,"),
        ("/props", [], "upstream 'only': /props or /tokenize, if this is llama.cpp's own server,"),
        ("/tokenize", {}, "upstream 'only': "),
        ("/tokenize", {"tokens": []}, "upstream 'only': "),
    ],
    ids=lambda value: "" if str(value).startswith("upstream") else str(value),
)
def test_an_upstream_that_is_something_else_is_told_in_one_line(
    path: str, reply: Any, sentence: str, tmp_path: Path, failing: Failing
) -> None:
    with llama_cpp(lambda asked: (200, {**READY, path: reply}[asked])) as base_url:
        said = failing("serve", "--config", config_file(tmp_path, base_url), "--port", "0")
    assert said.startswith(sentence)


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (
            "/no/such/file.gguf",
            "no GGUF file or folder at '/no/such/file.gguf'; name one, or package:",
        ),
        ("package:no-such-package", "the package 'no-such-package' is not installed"),
    ],
)
def test_an_embedded_model_that_is_not_there_is_told_in_one_line(
    model: str, sentence: str, tmp_path: Path, failing: Failing
) -> None:
    path = tmp_path / "motab.yaml"
    upstreams = {"only": {"kind": "embedded", "model": model}}
    models = {"pair": {"student": "only", "teacher": "only"}}
    path.write_text(json.dumps({"upstreams": upstreams, "models": models}), encoding="utf-8")
    assert failing("serve", "--config", path, "--port", "0").startswith(sentence)


@pytest.mark.parametrize(
    ("key", "upstream", "sentence"),
    [
        (
            "max_concurrent",
            {"max_concurrent": 2},
            "is divided among the workers and must be at least their number, 3, not 2",
        ),
        (
            "kind",
            {"kind": "embedded", "base_url": None},
            "every worker would load an embedded model for itself: use one worker, or run ",
        ),
    ],
    ids=["max_concurrent", "kind"],
)
def test_an_upstream_that_workers_cannot_divide_is_told_in_one_line(
    key: str, upstream: dict[str, Any], sentence: str, tmp_path: Path, failing: Failing
) -> None:
    path = config_file(tmp_path, **upstream)
    said = failing("serve", "--config", path, "--port", "0", "--workers", "3")
    assert said.startswith(f"upstreams.only.{key}: {sentence}")


def test_several_workers_are_refused_where_connections_are_not_spread(
    tmp_path: Path, failing: Failing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.serving.supervisor.sys.platform", "darwin")
    said = failing("serve", "--config", config_file(tmp_path), "--workers", "2")
    assert said == "--workers above 1 needs Linux, whose kernel spreads the connections"


def loaded_by(module: str) -> set[str]:
    """The modules that are loaded with this one."""
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_one_worker_loads_nothing_of_several() -> None:
    several = {"proxy.serving.supervisor", "proxy.serving.worker", "proxy.serving.shared_seats"}
    assert loaded_by("motab.serve").isdisjoint(several)


def test_a_command_does_not_wait_for_the_modules_of_others() -> None:
    heavy = {"aiohttp", "httpx", "starlette", "proxy.serving.serve", "trajectory_records.record"}
    assert loaded_by("motab.cli").isdisjoint(heavy)


def test_a_worker_does_not_load_what_few_configurations_need() -> None:
    assert loaded_by("proxy.serving.worker").isdisjoint({"httpx", "litellm"})
    # What reads answers comes with it, and loads the algebra system in processes of its own.
    assert loaded_by("motab.worker").isdisjoint({"httpx", "litellm", "sympy", "math_verify"})


def test_a_chat_template_that_does_not_parse_is_told_in_one_line(
    tmp_path: Path, failing: Failing
) -> None:
    path = config_file(tmp_path, chat_template="{% if %}")
    said = failing("serve", "--config", path, "--port", "0")
    assert said.startswith("upstreams.only.chat_template does not parse: line 1: ")


@contextmanager
def serving(*arguments: str | Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`motab serve`, once it says that it serves, and its base URL."""
    command = [MOTAB, "serve", *arguments, "--port", "0"]
    wide = {**ENV, "COLUMNS": "300"}
    with subprocess.Popen(command, env=wide, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            said: list[str] = []
            for line in process.stderr:
                said.append(line)
                if found := re.search(r"http://127\.0\.0\.1:\d+/v1", line):
                    break
            else:
                pytest.fail("".join(said))
            yield process, found[0]
        finally:
            process.kill()


def test_with_wait_it_serves_once_the_upstream_has_come_up(tmp_path: Path) -> None:
    loading = {"error": {"message": "Loading model", "code": 503}}
    answers: list[tuple[int, Any] | None] = [None, (503, loading)]
    asked: list[str] = []

    def answer(path: str) -> tuple[int, Any] | None:
        asked.append(path)
        return answers.pop(0) if answers else (200, READY[path])

    with (
        llama_cpp(answer) as base_url,
        serving("--config", config_file(tmp_path, base_url), "--wait", "200") as (process, url),
    ):
        assert asked[:3] == ["/props"] * 3
        with urllib.request.urlopen(f"{url}/models", timeout=PATIENCE_S) as response:
            models = json.load(response)["data"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=PATIENCE_S) == 0
    assert [model["id"] for model in models] == ["pair", "student/only", "teacher/only"]


def test_with_wait_it_gives_up_in_the_end(tmp_path: Path, failing: Failing) -> None:
    loading = {"error": {"message": "Loading model", "code": 503}}
    with llama_cpp(lambda path: (503, loading)) as base_url:
        path = config_file(tmp_path, base_url)
        said = failing("serve", "--config", path, "--port", "0", "--wait", "0.5")
    assert said.startswith("upstream 'only': /props answered 503: ")
    assert "Loading model" in said


def test_a_second_signal_stops_it_at_once(tmp_path: Path) -> None:
    called, released = threading.Event(), threading.Event()

    def answer(path: str) -> tuple[int, Any] | None:
        if path != "/completion":
            return 200, READY[path]
        called.set()
        released.wait(PATIENCE_S)
        return None

    body = json.dumps({"model": "student/only", "prompt": "Q"}).encode()
    with (
        llama_cpp(answer) as base_url,
        serving("--config", config_file(tmp_path, base_url)) as (process, url),
        socket.create_connection(("127.0.0.1", int(url.split(":")[2].split("/")[0]))) as client,
    ):
        head = (
            "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        )
        client.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        try:
            assert called.wait(PATIENCE_S)
            process.send_signal(signal.SIGTERM)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(timeout=0.5)  # the request is still running
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=PATIENCE_S) == 0
        finally:
            released.set()
