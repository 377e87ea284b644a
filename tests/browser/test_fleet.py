"""The view Fleet in front of real replicas and two workers, while servers go away."""

import json
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from motab.demo import demo_questions
from proxy.backends.embedded.gguf_files import converted, model_path
from tests.browser.page import opened, serious
from tests.support.patience import PATIENCE_S
from tests.support.proxy.live import llama_server, proxy

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers need Linux")

# A token of each kind is so dear that the cost in the picture is a whole number.
PRICES = {"student": 1e6, "teacher": 2e6, "scored": 3e6}


@dataclass
class Fleet:
    """A proxy of two workers, two replicas of the student, and the teacher."""

    base_url: str
    students: list[str]
    teacher: str
    second_student_ends: ExitStack
    """Ends the server when it is closed, as the next does."""
    teacher_ends: ExitStack
    spent: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PRICES, 0))

    def ask(self, number: int, model: str = "pair") -> int:
        """Ask a question of the demo; keep what it took, and return the status."""
        body = {
            "model": model,
            "messages": [{"role": "user", "content": demo_questions()[number].messages[0].content}],
            "seed": number,
        }
        url = f"{self.base_url}/motab/chat/completions"
        answer = httpx.post(url, json=body, timeout=PATIENCE_S)
        if answer.status_code == 200:
            used = answer.json()["usage"]["motab"]
            self.spent["student"] += used["student_tokens"]
            self.spent["teacher"] += used["teacher_tokens"]
            self.spent["scored"] += used["teacher_scored_tokens"]
        return answer.status_code


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    folders = {
        name: model_path(f"package:trainer/reproduce/models/{name}")
        for name in ("student", "teacher")
    }
    student, teacher = (converted(folder) for folder in folders.values())
    with ExitStack() as stack, ExitStack() as second, ExitStack() as third:
        urls = [
            stack.enter_context(llama_server(student)),
            second.enter_context(llama_server(student)),
        ]
        last = third.enter_context(llama_server(teacher))
        upstreams: dict[str, Any] = {
            "small": {"base_urls": urls, "tokenizer": str(folders["student"])},
            "large": {"base_url": last, "tokenizer": str(folders["teacher"])},
        }
        for one in upstreams.values():
            one |= {"kind": "llamacpp", "model": "m"}
        params = {"base_threshold": 0.5, "max_total_tokens": 256}
        pair = {"student": "small", "teacher": "large", "params": params}
        server = {"page": {"prices": PRICES}}
        config = {"server": server, "upstreams": upstreams, "models": {"pair": pair}}
        path = tmp_path / "motab.yaml"
        path.write_text(json.dumps(config), encoding="utf-8")
        base_url = stack.enter_context(proxy(path, "--workers", "2"))
        yield Fleet(base_url, urls, last, second, third)


def rows(page: Page, place: str) -> list[list[str]]:
    lines = page.locator(f"{place} tbody tr").all_inner_texts()
    return [line.split("\t") for line in lines]


def tiles(page: Page) -> dict[str, str]:
    names, values = (page.locator(f"#tiles {tag}").all_inner_texts() for tag in ("dt", "dd"))
    return dict(zip(names, values, strict=True))


def test_replicas_come_and_go_before_the_eyes_of_whoever_looks(
    browser: Browser, fleet: Fleet
) -> None:
    url = fleet.base_url.removesuffix("v1")
    with opened(browser, f"{url}#fleet") as wide, opened(browser, f"{url}#fleet", width=390) as one:
        page = wide.page
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(fleet.ask, range(8))) == [200] * 8
        assert fleet.ask(0, "absent") == 404
        expect(page.locator("#tiles")).to_contain_text("of 8 that a teacher judged; 0 failed")
        cost = sum(fleet.spent[role] * PRICES[role] for role in PRICES) / 1e6
        assert tiles(page)["Cost"].startswith(f"{cost:.2f}\n")
        assert tiles(page)["Student writes"].endswith(f"\n{fleet.spent['student']:,} tokens so far")
        expect(page.locator("#errors tbody tr").first).to_have_text(re.compile("answered 404"))
        names = ["large", "small", *fleet.students]
        assert sorted(row[:2] for row in rows(page, "#upstreams")) == sorted(
            [n, "ok"] for n in names
        )
        assert rows(page, "#models")[0][:2] == ["pair", "8"]
        assert wide.complaints == one.complaints == []

        fleet.second_student_ends.close()
        for window in (page, one.page):
            fallen = window.locator("#upstreams tr", has_text=fleet.students[1]).locator("td").first
            expect(fallen).to_contain_text("no connection to")
            expect(fallen).to_have_class("number bad")
            box = fallen.bounding_box()
            assert box is not None
            width = window.viewport_size["width"] if window.viewport_size else 0
            assert box["x"] + box["width"] < width
            assert window.evaluate("document.documentElement.scrollWidth") == width
            assert serious(window) == []
        assert page.locator("#upstreams").evaluate("one => one.scrollWidth <= one.clientWidth")
        expect(page.locator("#fleet-state")).to_contain_text("The server is ready.")
        assert [fleet.ask(number) for number in (8, 9)] == [200] * 2

        fleet.teacher_ends.close()
        expect(page.locator("#fleet-state")).to_contain_text("The server is unready.")
        assert fleet.ask(10) == 502
        expect(page.locator("#errors")).to_contain_text("answered 502")
        found = dict(rows(page, "#errors"))
        assert found.keys() >= {"answered 404", "answered 502", "upstream_unreachable"}
        assert "answered 503" not in found
        assert rows(page, "#models") == [["pair", "10", *rows(page, "#models")[0][2:3], "1"]]
