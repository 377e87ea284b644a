import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from proxy.page.files import SCRIPTS, page_files
from proxy.server_config import PageConfig, ServerConfig
from tests.support.proxy.api import MODEL, in_process, service_of
from tests.support.scripted import ScriptedBackend

FILES = sorted(page_files())
DATA = ("/page/setup", "/page/runs", "/page/runs/rows?file=x", "/page/runs/view?file=x")


async def got(path: str, headers: dict[str, str] | None = None, **server: Any) -> httpx.Response:
    async with in_process(service_of(ScriptedBackend(), **server)) as client:
        return await client.get(path, headers=headers)


@pytest.mark.parametrize("path", FILES)
async def test_the_page_s_files_need_no_key_and_may_ask_nobody_else(path: str) -> None:
    response = await got(path, api_keys=["key"])
    assert response.status_code == 200
    assert response.headers["content-security-policy"] == (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self';"
        " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    assert response.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", FILES)
def test_no_file_of_the_page_names_an_address_or_writes_html(path: str) -> None:
    text = page_files()[path].content.decode()
    text = text.replace("http://www.w3.org/2000/svg", "")  # a name, which nobody loads
    assert not re.search(r"https?://|//\w+\.|@import|\burl\(", text)
    writes = re.search(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|DOMParser|eval\(|Function\(", text
    )
    assert not writes


def test_the_page_has_no_script_or_style_inside() -> None:
    html = page_files()["/"].content.decode()
    assert "{{" not in html
    assert html.count("<dt>V</dt>") == html.count('id="trajectory"') == 1
    assert not re.search(r"<style|\son\w+=|\sstyle=|javascript:", html)
    scripts = re.findall(r"<script([^>]*)>(.*?)</script>", html)
    assert [inside for _, inside in scripts] == [""] * (len(SCRIPTS) + 1)
    loaded = re.findall(r'(?:src|href)="(page/[^"]+)"', html)
    assert {f"/{name}" for name in loaded} == set(FILES) - {"/"}


@pytest.mark.parametrize("path", DATA)
async def test_data_needs_the_key(path: str) -> None:
    assert (await got(path, api_keys=["key"])).status_code == 401
    key = {"authorization": "Bearer key"}
    assert (await got(path, key, api_keys=["key"])).status_code != 401


async def test_a_page_of_another_origin_or_name_gets_nothing() -> None:
    for path in ("/", *DATA):
        assert (await got(path, {"host": "evil.example"})).status_code == 403
        assert (await got(path, {"origin": "http://evil.example"})).status_code == 403


@pytest.mark.parametrize("off", [False, None])
async def test_without_the_page_its_paths_do_not_exist(off: Any) -> None:
    for path in (*FILES, *DATA):
        assert (await got(path, page=off)).status_code == 404
    assert (await got("/", page=off, api_keys=["key"])).status_code == 401


async def test_the_setup_describes_models_with_their_defaults() -> None:
    service = service_of(
        ScriptedBackend(), defaults={"base_threshold": 0.4}, page={"questions": ["Why?"]}
    )
    async with in_process(service) as client:
        found = (await client.get("/page/setup")).json()
    assert found["questions"] == ["Why?"]
    pair = next(one for one in found["models"] if one["name"] == MODEL)
    assert pair["params"]["base_threshold"] == 0.4
    assert pair["own"] == {"base_threshold": 0.4}
    assert (pair["student"] is None, pair["teacher"] is None) == (False, False)
    alone = next(one for one in found["models"] if one["name"] == "student/s")
    assert (alone["student"] is None, alone["teacher"] is None) == (False, True)


def test_the_page_is_on_unless_it_is_switched_off() -> None:
    assert ServerConfig().page == PageConfig()
    assert ServerConfig.model_validate({"page": True}).page == PageConfig()
    assert ServerConfig.model_validate({"page": False}).page is None
    found = ServerConfig.model_validate({"page": {"runs": "out", "prices": {"student": 1}}}).page
    assert found == PageConfig(runs="out", prices={"student": 1.0})


@pytest.mark.parametrize(
    ("page", "fault"),
    [
        ("yes", "must be true, false, or"),
        ({"prices": {"students": 1}}, "'student', 'scored' or 'teacher'"),
        ({"prices": {"student": -1}}, "greater than or equal to 0"),
        ({"run": "out"}, "Extra inputs"),
    ],
)
def test_a_wrong_page_is_refused(page: Any, fault: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(fault)):
        ServerConfig.model_validate({"page": page})


async def test_the_configuration_s_file_of_records_is_listed(tmp_path: Path) -> None:
    records = tmp_path / "records.jsonl"
    records.write_bytes(b"")
    response = await got("/page/runs", records=str(records))
    assert [file["name"] for file in response.json()] == ["server.records: records.jsonl"]
