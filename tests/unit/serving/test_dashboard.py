"""Tests that the dashboard asks for the metrics and labels that exist, and for all of them."""

import json
import re
from collections.abc import Iterator
from itertools import combinations
from typing import Any, Final

import pytest
from prometheus_client.metrics import Counter, Histogram, MetricWrapperBase

from proxy.api.metrics import Metrics
from tests.support.paths import ROOT

DASHBOARD: Final[dict[str, Any]] = json.loads(
    (ROOT / "configs" / "grafana" / "motab.json").read_text(encoding="utf-8")
)
PANELS: Final[list[dict[str, Any]]] = DASHBOARD["panels"]
TARGETS: Final = [
    (panel["title"], target) for panel in PANELS for target in panel.get("targets", ())
]
VARIABLES: Final[list[dict[str, Any]]] = DASHBOARD["templating"]["list"]
# Prometheus makes these itself.
OF_PROMETHEUS: Final = {"up": {"job", "instance"}}
LABELS_OF_TARGETS: Final = {"job", "instance"}
_SELECTOR: Final = re.compile(r"\b([a-z]\w*)\{([^}]*)\}")
_LABEL: Final = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"")
_GROUPING: Final = re.compile(r"\bby \(([^)]*)\)")


def exported() -> dict[str, set[str]]:
    """The labels of every series of `/metrics` by its name."""
    found: dict[str, set[str]] = {}
    for metric in metrics():
        found |= series_of(metric)
    return found


def metrics() -> list[MetricWrapperBase]:
    collectors = Metrics().registry._collector_to_names
    return [one for one in collectors if isinstance(one, MetricWrapperBase)]


def series_of(metric: MetricWrapperBase) -> dict[str, set[str]]:
    name, labels = metric._name, set(metric._labelnames)
    if isinstance(metric, Counter):
        return {f"{name}_total": labels}
    if isinstance(metric, Histogram):
        parts = {f"{name}_sum": labels, f"{name}_count": labels}
        return {**parts, f"{name}_bucket": labels | {"le"}}
    return {name: labels}


def faults_of(query: str) -> Iterator[str]:
    """The metrics and labels that a query asks for and that do not exist."""
    known = exported() | OF_PROMETHEUS
    asked = _SELECTOR.findall(query)
    if not asked:
        yield "it names no metric"
    grouped = {label for group in _GROUPING.findall(query) for label in re.split(r",\s*", group)}
    for name, matchers in asked:
        if name not in known:
            yield f"there is no metric {name}"
            continue
        labels = set(_LABEL.findall(matchers)) | grouped
        yield from (f"{name} has no label {x}" for x in labels - known[name] - LABELS_OF_TARGETS)


@pytest.mark.parametrize(("title", "target"), TARGETS, ids=[title for title, _ in TARGETS])
def test_a_panel_asks_for_what_there_is(title: str, target: dict[str, Any]) -> None:
    query = target["expr"]
    assert list(faults_of(query)) == [], title
    assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= {
        label for group in _GROUPING.findall(query) for label in re.split(r",\s*", group)
    }


@pytest.mark.parametrize(
    ("query", "fault"),
    [
        ('rate(motab_gone_total{job="x"}[1m])', "there is no metric motab_gone_total"),
        ('motab_upstream_waiting{replica=~"x"}', "motab_upstream_waiting has no label replica"),
        ('sum by (code) (motab_requests_total{job="x"})', "motab_requests_total has no label code"),
        ("vector(1)", "it names no metric"),
    ],
)
def test_a_query_for_what_there_is_not_is_found(query: str, fault: str) -> None:
    assert list(faults_of(query)) == [fault]


def test_every_metric_is_on_a_panel() -> None:
    asked = {name for _, target in TARGETS for name, _ in _SELECTOR.findall(target["expr"])}
    assert len(metrics()) > 10
    for metric in metrics():
        assert asked & series_of(metric).keys(), metric


def test_the_variables_ask_for_what_there_is() -> None:
    known = exported()
    for variable in VARIABLES:
        if variable["type"] != "query":
            continue
        asked = re.fullmatch(r"label_values\((\w+)(?:\{.*\})?, (\w+)\)", variable["definition"])
        assert asked
        assert asked[2] in known[asked[1]] | LABELS_OF_TARGETS
        assert variable["query"]["query"] == variable["definition"]


def test_every_variable_is_there_and_used() -> None:
    names = {variable["name"] for variable in VARIABLES}
    queries = " ".join(target["expr"] for _, target in TARGETS)
    sources = {panel["datasource"]["uid"] for panel in PANELS if "datasource" in panel}
    used = set(re.findall(r"\$(\w+)", queries)) - {"__rate_interval"}
    assert used | {"datasource"} == names
    assert sources == {"${datasource}"}
    (source,) = (variable for variable in VARIABLES if variable["type"] == "datasource")
    assert (source["name"], source["query"]) == ("datasource", "prometheus")


def test_it_is_a_dashboard_whose_panels_have_ids_and_places_of_their_own() -> None:
    assert DASHBOARD["uid"] == "motab"
    assert isinstance(DASHBOARD["schemaVersion"], int)
    assert "id" not in DASHBOARD  # of the Grafana that it was made in
    ids = [panel["id"] for panel in PANELS]
    assert len(set(ids)) == len(ids)
    for panel in PANELS:
        assert panel["title"]
        targets = panel.get("targets", [])
        assert bool(targets) == (panel["type"] != "row")
        assert len({target["refId"] for target in targets}) == len(targets)
    for one, other in combinations((panel["gridPos"] for panel in PANELS), 2):
        across = one["x"] < other["x"] + other["w"] and other["x"] < one["x"] + one["w"]
        down = one["y"] < other["y"] + other["h"] and other["y"] < one["y"] + one["h"]
        assert not (across and down)
        assert max(box["x"] + box["w"] for box in (one, other)) <= 24
