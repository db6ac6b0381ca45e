"""Leaves out of the package what pip installs and no agent uses: a quarter of it.

pip knows whole distributions only. Left out are the tests and compiler's parts of libraries, the tools that make models
ready on a workstation, the coordinator, and the client of a model hub with all that it alone requires: tokenizers asks
for it to download vocabularies, and an agent's come with its task.
"""

from __future__ import annotations

import re
import shutil
from importlib.metadata import Distribution, distributions
from pathlib import Path

_PROJECT = "raffm-edge"
_UNUSED_DISTRIBUTIONS = frozenset({"huggingface-hub"})
_UNUSED_FILES = (
    "coordinator",
    "**/tests",
    "**/*.pyi",
    "numpy/distutils",
    "numpy/f2py",
    "onnxruntime/quantization",
    "onnxruntime/tools",
    "onnxruntime/transformers",
)
_NAME = re.compile(r"[A-Za-z0-9._-]+")


def unused_distributions(site_packages: Path) -> list[str]:
    """What is installed and not required, directly or not, by this project, once the hub's client is not.

    Whatever the project names counts as required, its extras too; of others' extras none, and every marker holds.
    """
    installed = {_canonical(one.name): one for one in distributions(path=[str(site_packages)])}
    required: set[str] = set()
    waiting = [_PROJECT]
    while waiting:
        name = waiting.pop()
        if name in installed and name not in required | _UNUSED_DISTRIBUTIONS:
            required.add(name)
            waiting += _requirements(installed[name], with_extras=name == _PROJECT)
    return sorted(installed.keys() - required)


def remove_unused_files(site_packages: Path) -> None:
    """Remove the files and folders that no agent opens."""
    for path in [found for pattern in _UNUSED_FILES for found in site_packages.glob(pattern)]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _requirements(distribution: Distribution, *, with_extras: bool) -> list[str]:
    texts = [text for text in distribution.requires or () if with_extras or "extra ==" not in text]
    return [_canonical(found.group()) for found in map(_NAME.match, texts) if found]


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
