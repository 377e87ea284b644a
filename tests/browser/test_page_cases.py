"""The proxy's page where things are not as usual: stitching, models alone, replicas, faults."""

import time

import pytest
from playwright.sync_api import Browser, Route, expect

from tests.browser.page import CORRECTION, STEPS, Watched, opened, served, straying_service
from tests.support.proxy.api import service_of
from tests.support.scripted import ScriptedBackend, says, values
from tests.support.synth_client.reports import EVIL

NONE = "\u2013"
METRICS = """# HELP motab_active_trajectories Trajectories under way
motab_active_trajectories 7.0
motab_trajectories_total{method="motab",model="m",outcome="breach"} 3.0
motab_trajectories_total{method="motab",model="m",outcome="safe"} 1.0
motab_trajectories_total{method="motab",model="m",outcome="failed"} 2.0
motab_student_waits_total{upstream="up"} 5.0
motab_upstream_max_concurrent{kind="write",upstream="up"} 8.0
motab_upstream_running{kind="write",upstream="up"} 6.0
motab_upstream_waiting{kind="write",upstream="up"} 4.0
motab_upstream_request_seconds_count{outcome="ok",path="/p",upstream="up"} 9.0
motab_upstream_request_seconds_count{outcome="upstream_failed",path="/p",upstream="up"} 2.0
motab_upstream_retries_total{code="upstream_failed",upstream="up"} 2.0
motab_requests_total{route="/v1/models",status="404"} 3.0
motab_requests_total{route="/v1/models",status="200"} 30.0
motab_replica_up{replica="http://one",upstream="up"} 1.0
motab_replica_up{replica="REPLICA",upstream="up"} 0.0
motab_replica_trajectories{replica="http://one",upstream="up"} 7.0
motab_replica_running_requests{replica="http://one",upstream="up"} 6.0
motab_replica_requests_total{outcome="ok",replica="http://one",upstream="up"} 11.0
"""


def rows(one: Watched, place: str) -> list[list[str]]:
    lines = one.page.locator(f"{place} tbody tr").all_inner_texts()
    return [line.split("\t") for line in lines]


def test_upstreams_replicas_and_errors_are_shown_by_their_names(browser: Browser) -> None:
    escaped = EVIL.replace("\\", "\\\\").replace('"', '\\"')
    ready = {
        "status": "unready",
        "upstreams": {"up": "ok", "down": f"no answer {EVIL}"},
        "replicas": {"up": {"http://one": "ok", EVIL: "out: refused"}},
    }

    def metrics(route: Route) -> None:
        route.fulfill(body=METRICS.replace("REPLICA", escaped), content_type="text/plain")

    with served(straying_service()) as url, opened(browser, url) as one:
        one.page.route("**/metrics", metrics)
        one.page.route("**/ready", lambda route: route.fulfill(status=503, json=ready))
        one.page.click("nav a[href='#fleet']")
        one.page.wait_for_selector("html[data-fleet=ready]")
        expect(one.page.locator("#fleet-state")).to_contain_text("The server is unready.")
        places = ["6 / 8", NONE, "4", "11", "2", NONE, NONE]
        assert rows(one, "#upstreams") == [
            ["up", "ok", *places],
            ["http://one", "ok", "7 trajectories", "6 running", "", "11", "0", "", ""],
            [EVIL, "out: refused", "0 trajectories", "0 running", "", "0", "0", "", ""],
            ["down", f"no answer {EVIL}", NONE, NONE, "0", "0", "0", NONE, NONE],
        ]
        assert rows(one, "#errors") == [
            ["answered 404", "3"],
            ["upstream_failed", "2"],
            ["tried again after upstream_failed", "2"],
        ]
        assert rows(one, "#models") == [["m", "4", "75%", "2"]]
        tiles = one.page.locator("#tiles dd").all_inner_texts()
        assert tiles[0].startswith("7\n")
        assert tiles[1] == "75%\n3 of 4 that a teacher judged; 2 failed"
        assert tiles[6] == "4\ncalls wait for a place; students waited 5 times"


@pytest.mark.parametrize(
    ("others", "state", "tone"),
    [({"REPLICA": "ok"}, "out", "bad"), ({"http://three": "ok"}, "drained", "soft")],
)
def test_a_replica_without_new_trajectories_is_out_or_drained(
    browser: Browser, others: dict[str, str], state: str, tone: str
) -> None:
    replicas = {"up": {"http://one": "ok", **others}}
    ready = {"status": "ready", "upstreams": {"up": "ok"}, "replicas": replicas}
    with served(straying_service()) as url, opened(browser, url) as one:
        one.page.route("**/metrics", lambda route: route.fulfill(body=METRICS))
        one.page.route("**/ready", lambda route: route.fulfill(json=ready))
        one.page.click("nav a[href='#fleet']")
        cell = one.page.locator("#upstreams tr", has_text="REPLICA").locator("td").first
        expect(cell).to_have_text(state)
        expect(cell).to_have_class(f"number {tone}")


def test_a_server_that_goes_away_is_said_and_seen_again(browser: Browser) -> None:
    with served(straying_service()) as url, opened(browser, url) as one:
        one.page.route("**/metrics", lambda route: route.abort())
        one.page.click("nav a[href='#fleet']")
        state = one.page.locator("#fleet-state")
        expect(state).to_have_text("No news: the server does not answer.")
        one.page.unroute("**/metrics")
        expect(state).to_contain_text("The server is ready.")


@pytest.mark.parametrize(
    ("rate", "ticks"),
    [(130, ["0", "50", "100", "150"]), (7, ["0", "2", "4", "6", "8"])],
)
def test_the_rates_have_an_axis_of_round_numbers(
    browser: Browser, rate: int, ticks: list[str]
) -> None:
    def metrics(route: Route) -> None:
        total = rate * time.monotonic()
        route.fulfill(body=f'motab_tokens_total{{kind="student",model="m"}} {total}\n')

    with served(straying_service()) as url, opened(browser, url) as one:
        page = one.page
        page.route("**/metrics", metrics)
        page.click("nav a[href='#fleet']")
        numbers = page.locator("#rates .tick:has(line) text")
        expect(numbers).to_have_text(ticks)


@pytest.mark.parametrize("backtrack", ["td_error", "none"])
def test_a_clean_text_shows_what_was_left_out(browser: Browser, backtrack: str) -> None:
    with served(straying_service()) as url, opened(browser, url) as one:
        one.page.select_option("#option-stitch", "clean")
        one.page.select_option("#option-backtrack", backtrack)
        one.run()
        back = 1 if backtrack == "td_error" else 2
        state = one.page.locator("#pair-state")
        expect(state).to_have_text(f"breach at step 2, back to t* = {back}")
        attempt, correction = one.page.locator("#pair .pair > div").all()
        assert [text.strip() for text in attempt.locator(".text").all_inner_texts()] == [
            step.strip() for step in STEPS[back:]
        ]
        assert attempt.inner_text().count("left out") == 3 - back
        assert correction.locator(".text").all_inner_texts() == [CORRECTION]


def test_a_model_alone_has_one_text(browser: Browser) -> None:
    with served(straying_service()) as url, opened(browser, url) as one:
        one.page.select_option("#model", "teacher/t")
        one.run()
        expect(one.page.locator("#teacher-text")).to_have_text(CORRECTION)
        expect(one.page.locator("#student-card")).to_be_hidden()
        expect(one.page.locator("#pair")).to_be_hidden()


def test_characters_beyond_the_first_plane_move_no_step(browser: Browser) -> None:
    steps = (
        "\U0001f34e and \U0001f34a.\n\n",
        "\U0001f34e\U0001f34e \U0001f600.\n\n",
        "C \U0001f600.\n\n",
    )
    with served(straying_service(*steps)) as url, opened(browser, url) as one:
        one.run()
        shown = one.page.locator("#pair [data-step] .text").all_inner_texts()
        assert [text.strip() for text in shown] == [step.strip() for step in steps]
        assert one.page.locator("#pair .rest .text").all_inner_texts() == ["However,", CORRECTION]


def test_a_long_text_is_shown_to_its_end(browser: Browser) -> None:
    steps = [f"Step {number} is right.\n\n" for number in range(300)]
    service = service_of(ScriptedBackend(says(*steps)), ScriptedBackend(says("Yes."), values({})))
    with served(service) as url, opened(browser, url) as one:
        one.run()
        expect(one.page.locator("#pair-state")).to_have_text("no breach")
        assert one.page.locator("#pair [data-step]").count() == 300
        assert one.page.evaluate("document.documentElement.scrollWidth") == 1280
