"""The image in a container with a read-only root, in front of real models."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from proxy import __version__
from tests.image.conftest import HEALTH_PORT, KEY, Served, served
from tests.image.engine import container, podman

MODEL = "motab/demo"
QUESTION = "A shop has 6 boxes with 4 pens each. How many pens are there?"
# Greedily, the student writes numbers up to the limit.
LONG = "Write the numbers from 1 to 1000, separated by commas."
# What the image may add to its base, and in all on the base of these tests; docs/deployment.md.
MOST_ADDED_MB = 130
MOST_MB = 290


@pytest.fixture(scope="module")
def running(image: str, config_file: Path) -> Iterator[Served]:
    with served(image, config_file, HEALTH_PORT) as running:
        yield running
        running.container.send("TERM")
        assert running.container.exit_code() == 0


def chat(content: str, **fields: object) -> dict[str, object]:
    return {"model": MODEL, "messages": [{"role": "user", "content": content}], **fields}


def answered(running: Served, asked: dict[str, object]) -> dict[str, Any]:
    """The choice of an answer."""
    response = running.client.post("/v1/chat/completions", json=asked)
    assert response.status_code == 200, response.text
    (choice,) = response.json()["choices"]
    found: dict[str, Any] = choice
    return found


def python(running: Served, code: str, *options: str) -> str:
    """Run Python code inside the container."""
    return podman("exec", *options, running.container.name, "python", "-c", code).strip()


def test_the_image_adds_no_more_than_a_proxy_needs(image: str, sizes: dict[str, float]) -> None:
    assert sizes["motab"] - sizes["base"] < MOST_ADDED_MB
    assert sizes["motab"] < MOST_MB


def test_the_command_runs_with_nothing_mounted(image: str) -> None:
    options = ("--read-only", "--read-only-tmpfs=false", "--network=none", "--entrypoint=motab")
    with container(image, options, ("--version",)) as ended:
        assert ended.exit_code() == 0
        assert ended.log() == f"motab {__version__}\n"


def test_without_a_key_the_container_ends_with_a_message(image: str, config_file: Path) -> None:
    mount = f"--volume={config_file}:/etc/motab/config.yaml:ro"
    with container(image, ("--network=none", mount)) as ended:
        assert ended.exit_code() == 1
        assert "the environment variable MOTAB_API_KEY is not set" in " ".join(ended.log().split())


def test_it_runs_as_its_user_without_capabilities_on_a_root_that_nobody_can_write(
    running: Served,
) -> None:
    status = dict(
        line.split(":\t", 1)
        for line in python(running, "print(open('/proc/1/status').read())").splitlines()
        if ":\t" in line
    )
    assert status["Uid"].split() == ["65532"] * 4
    assert status["Gid"].split() == ["65532"] * 4
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    write = "open('/opt/motab/new', 'w')"
    with pytest.raises(AssertionError, match="Read-only file system"):
        python(running, write, "--user=0")


def test_caches_can_be_written_in_the_home_and_temporary_files_where_they_belong(
    running: Served,
) -> None:
    write = (
        "import pathlib, tempfile; tempfile.TemporaryFile(); (pathlib.Path.home() / 'x').touch()"
    )
    python(running, write)


def test_a_question_is_answered_by_real_models_with_a_trace(running: Served) -> None:
    asked = chat(QUESTION, temperature=0, seed=1, motab={"trace": "full"})
    choice = answered(running, asked)
    assert choice["message"]["content"]
    values = [step["value"] for step in choice["motab"]["steps"]]
    assert values
    assert all(0 < value <= 1 for value in values)


def test_only_the_key_of_the_secret_file_opens_it(running: Served) -> None:
    assert running.client.get("/v1/models").status_code == 200
    wrong = {"authorization": "Bearer another"}
    assert running.client.get("/v1/models", headers=wrong).status_code == 401
    assert KEY not in podman("inspect", running.container.name)
    assert KEY not in running.container.log()


def test_health_and_readiness_answer(running: Served) -> None:
    for path in ("/health", "/ready"):
        assert running.client.get(path).status_code == 200


def test_the_health_check_passes_while_the_proxy_lives_and_fails_while_it_stands_still(
    running: Served,
) -> None:
    assert running.container.is_healthy()
    running.container.send("STOP")
    try:
        assert not running.container.is_healthy()
    finally:
        running.container.send("CONT")
    assert running.container.is_healthy()


def test_at_sigterm_a_stream_under_way_is_finished_and_the_exit_code_is_0(
    image: str, config_file: Path
) -> None:
    asked = chat(LONG, stream=True, temperature=0, motab={"method": "student"})
    with (
        served(image, config_file) as running,
        running.client.stream("POST", "/v1/chat/completions", json=asked) as response,
    ):
        lines = (line for line in response.iter_lines() if line.startswith("data: "))
        events = (line.removeprefix("data: ") for line in lines)
        first = next(events)
        running.container.send("TERM")
        running.container.wait_until(lambda: not is_listening(running.port))
        *rest, last = events
        assert json.loads(first)["choices"]
        assert last == "[DONE]"
        choices = [choice for event in rest for choice in json.loads(event)["choices"]]
        assert len(choices) > 10
        assert choices[-1]["finish_reason"] in {"stop", "length"}
        assert running.container.exit_code() == 0


def is_listening(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def hosted_config(config_file: Path, student_url: str) -> Path:
    """The pair with its student behind litellm."""
    config = yaml.safe_load(config_file.read_text(encoding="utf-8"))
    config["upstreams"]["student"] = {
        "kind": "litellm",
        "model": "openai/student",
        "base_url": f"{student_url}/v1",
        "api_key": "none",
        "continuation": "instruct",
    }
    path = config_file.with_name("hosted.yaml")
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    path.chmod(0o644)
    return path


def test_the_image_with_litellm_asks_a_hosted_api(
    hosted_image: str, config_file: Path, student_url: str
) -> None:
    with served(hosted_image, hosted_config(config_file, student_url)) as running:
        asked = chat(QUESTION, max_tokens=16, motab={"method": "student"})
        assert answered(running, asked)["message"]["content"]


def test_the_image_without_litellm_says_which_one_has_it(
    image: str, config_file: Path, student_url: str
) -> None:
    with (
        pytest.raises(AssertionError, match="PACKAGES=serve-litellm"),
        served(image, hosted_config(config_file, student_url)),
    ):
        pass
