"""The board for Grafana names only what a real coordinator and a real API show to Prometheus."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any

import promql_parser
import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner

from coordinator.api.access import make_token
from coordinator.api.app import create_app
from coordinator.cli import app
from coordinator.metrics.process import showing
from coordinator.metrics.vitals import Vitals
from coordinator.store.states import AccessRole
from edge_sdk.errors import PortInUseError
from edge_sdk.protocol.messages import Offer
from edge_sdk.protocol.topics import coordinator_filters
from edge_sdk.transport.memory import MemoryHub, MemoryTransport
from tests.support.broker import free_port
from tests.support.light_model import light_models, light_task
from tests.support.served import Served, quick
from tests.support.simulator import Answer, Fleet, small_update

Labels = Mapping[str, frozenset[str]]
"""Of each metric that is shown."""
VARIABLES = {"$task": ".*", "${datasource}": ""}


def silent_b(device: str, offer: Offer, weights: bytes) -> Answer:
    return None if device == "b" else small_update(device, offer, weights)


def shown_by(text: str) -> dict[str, frozenset[str]]:
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {sample.name: frozenset(sample.labels) for sample in samples}


@pytest.fixture(scope="module")
def exposed(tmp_path_factory: pytest.TempPathFactory) -> Labels:
    """By the API and by the coordinator, after two rounds of three devices, one of which never answers."""
    folder, hub, port = tmp_path_factory.mktemp("state"), MemoryHub(), free_port()
    task = light_task(folder, "news", quorum=2, round_deadline_s=1.0)
    link = MemoryTransport(hub, coordinator_filters("default"))
    fleet = Fleet("abc", lambda _, filters, will: MemoryTransport(hub, filters, will=will), work=silent_b)
    with light_models(), Served(quick(folder), task, link) as served, fleet:
        served.wait_for_end()
        secret = make_token(served.store, "prometheus", AccessRole.VIEWER, None, time.time(), "a test")
        with TestClient(create_app(served.store)) as client:
            of_api = client.get("/metrics", headers={"Authorization": f"Bearer {secret}"}).text
        with showing(lambda: served.service.vitals, port):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                of_process = answer.read().decode()
            with pytest.raises(PortInUseError, match=r"is in use: .* --metrics-port"), showing(Vitals, port):
                pass
        vitals = served.service.vitals
    assert vitals.is_connected
    assert vitals.received["update-ready"] >= 4
    assert min(vitals.received_bytes, vitals.sent_bytes) > 0
    return shown_by(of_api) | shown_by(of_process)


def board() -> dict[str, Any]:
    printed = CliRunner().invoke(app, ["metrics", "board"], catch_exceptions=False).stdout
    found: dict[str, Any] = json.loads(printed)
    return found


def expressions() -> list[str]:
    return [target["expr"] for panel in board()["panels"] for target in panel.get("targets", ())]


def selectors(expression: object) -> Iterator[Any]:
    """Every metric that is chosen in a part of an expression."""
    if isinstance(expression, promql_parser.VectorSelector):
        yield expression
    for name in ("expr", "lhs", "rhs", "vector_selector"):
        if (part := getattr(expression, name, None)) is not None:
            yield from selectors(part)
    for part in getattr(expression, "args", ()):
        yield from selectors(part)


def strange(text: str, exposed: Labels) -> list[str]:
    """What an expression names and nobody shows."""
    for variable, value in VARIABLES.items():
        text = text.replace(variable, value)
    found = list[str]()
    for selector in selectors(promql_parser.parse(text)):
        labels = {matcher.name for matcher in selector.matchers.matchers}
        if selector.name not in exposed:
            found.append(selector.name)
        elif not labels <= exposed[selector.name]:
            found.append(f"{selector.name}{labels - exposed[selector.name]}")
    return found


def test_every_expression_names_what_is_shown(exposed: Labels) -> None:
    assert len(expressions()) >= 20
    assert [(text, names) for text in expressions() if (names := strange(text, exposed))] == []


def test_every_metric_of_ours_is_on_the_board(exposed: Labels) -> None:
    named = {selector.name for text in expressions() for selector in selectors(promql_parser.parse(_filled(text)))}
    assert {name for name in exposed if name.startswith("raffm_")} <= named


def test_variables_of_the_board_name_what_is_shown(exposed: Labels) -> None:
    queries = [known["query"]["query"] for known in board()["templating"]["list"] if known["type"] == "query"]
    for query in queries:
        metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", query).groups()  # type: ignore[union-attr]
        assert label in exposed[metric]


def test_names_that_nobody_shows_are_found(exposed: Labels) -> None:
    """The control of the tests above."""
    assert strange("sum by (task) (rate(raffm_rounds[5m])) / raffm_devices", exposed) == ["raffm_rounds"]
    assert strange('raffm_devices{device="pi"}', exposed) == ["raffm_devices{'device'}"]
    with pytest.raises(ValueError, match="unclosed"):
        strange("sum(raffm_devices", exposed)


def test_metrics_are_named_as_prometheus_wants_it(exposed: Labels) -> None:
    for name in (known for known in exposed if known.startswith("raffm_")):
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", name)
        assert not re.search(r"_(ms|mib|kib|percent|minutes)\b", name)


def _filled(text: str) -> str:
    return text.replace("$task", ".*")
