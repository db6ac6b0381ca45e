"""What docstrings show is what happens; those of the SDK are run with agents whose models are small enough to tell."""

from __future__ import annotations

import doctest
import importlib
import math
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

import edge_sdk
from edge_sdk import Agent
from edge_sdk.elastic.submodel import ModelTask, Submodel
from edge_sdk.inference.serving import Serving
from edge_sdk.protocol.blobs import digest_of
from edge_sdk.protocol.messages import BlobEntry, Part
from edge_sdk.protocol.releases import ReleasedModel
from tests.support.logistic_graph import LABELS, WORDS, inference_model, tokenizer_json
from tests.support.signed import installed, order_of
from tests.support.table_model import table_model

FOLDER = Path(edge_sdk.__file__).parent
WITH_SESSIONS = sorted(
    ".".join(path.relative_to(FOLDER.parent).with_suffix("").parts)
    for path in FOLDER.rglob("*.py")
    if "    >>> " in path.read_text(encoding="utf-8")
)
SDK = "edge_sdk.sdk"
BAD = {"bad", "awful"}
ODDS = {"good": 3.0, "awful": 1 / 9}  # of positive against negative


def films() -> bytes:
    """The word beside film decides."""
    values = {
        "embedding.weight": np.array([[2 * math.log(ODDS.get(word, 1.0)), 0, 0] for word in WORDS], np.float32),
        "classifier.weight": np.array([[0, 0, 0], [1, 0, 0]], np.float32),
        "classifier.bias": np.zeros(2, np.float32),
    }
    return inference_model(values).SerializeToString()


TAGS = np.array([[float(word in BAD), float(word not in BAD)] for word in WORDS])
FOLLOWING = np.eye(len(WORDS))[[WORDS.index("film")] * len(WORDS)]
MODELS = {
    "agent": (films, LABELS),
    "tagger": (lambda: table_model(ModelTask.TOKEN_CLASSIFICATION, TAGS), LABELS),
    "writer": (lambda: table_model(ModelTask.TEXT_GENERATION, FOLLOWING), ()),
}


def serve(state: Path, model: bytes, labels: tuple[str, ...]) -> None:
    """Have the agent of the state folder run ``model``."""
    files = {}
    for part, data in ((Part.INFERENCE_MODEL, model), (Part.TOKENIZER, tokenizer_json())):
        files[part] = state / f"released-{part.value}"
        files[part].write_bytes(data)
    manifest = ReleasedModel(
        release=1,
        task="task",
        submodel=Submodel((0,), (1,), (1,)),
        labels=labels,
        max_tokens=8,
        manifest=tuple(
            BlobEntry(part=part, digest=digest_of(file.read_bytes()), size_bytes=file.stat().st_size)
            for part, file in files.items()
        ),
    )
    assert installed(Serving(state / "slots", threads=1), order_of(manifest), files).healthy


@pytest.fixture
def agents(tmp_path: Path) -> Iterator[dict[str, Agent]]:
    """By the names that sessions give them; none is started."""
    with ExitStack() as stack:
        found = {}
        for name, (model, labels) in MODELS.items():
            state = tmp_path / name
            state.mkdir()
            serve(state, model(), labels)
            found[name] = Agent("pi-5", "mqtt://127.0.0.1:9", state_dir=state)
            stack.callback(found[name].stop)
        yield found


def failures(name: str, known: dict[str, object]) -> int:
    failed, tried = doctest.testmod(importlib.import_module(name), extraglobs=known)
    assert tried
    return failed


@pytest.mark.parametrize("name", [name for name in WITH_SESSIONS if name != SDK])
def test_sessions_in_docstrings_run(name: str) -> None:
    assert not failures(name, {})


def test_sessions_of_the_sdk_run(agents: dict[str, Agent], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert not failures(SDK, {**agents})


def test_what_an_application_calls_has_a_session() -> None:
    calls = {"", ".predict", ".tag", ".generate", ".learn"}
    found = doctest.DocTestFinder().find(Agent, "Agent")
    assert {f"Agent{call}" for call in calls} <= {test.name for test in found if test.examples}
    assert {"edge_sdk.device.policy", "edge_sdk.profile", "edge_sdk.data.owned", "edge_sdk.sessions"} <= {
        *WITH_SESSIONS
    }
