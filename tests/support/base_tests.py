"""Which tests are the SDK's own: those that need no more than the base installation and tools of testing.

It follows from what a module imports at its top, itself or through ``tests.support``: whoever compares with torch or
talks to the coordinator imports it. A single test that needs more, in a module that does not, is marked
``beyond_base``. What is neither fails where the base installation alone is there, which `make test-all` is for.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

FOLDERS = ("unit", "contract", "property")  # the others run a coordinator
BEYOND = {
    *("coordinator", "iotcore", "matplotlib", "onnxscript", "peft", "sqlalchemy", "torch", "transformers"),
    *("PIL", "datasets", "pandas", "pyarrow"),
}
_ROOT = Path(__file__).parents[2]


@cache
def needs(path: Path) -> frozenset[str]:
    """What of ``BEYOND`` importing the module at ``path`` imports."""
    found: set[str] = set()
    for name in _imports(ast.parse(path.read_text(encoding="utf-8"))):
        support = _ROOT.joinpath(*name.split(".")).with_suffix(".py")
        found |= needs(support) if name.startswith("tests.") and support.is_file() else {name.partition(".")[0]}
    return frozenset(found & BEYOND)


def is_base(path: Path) -> bool:
    """Whether the test module, or the folder with its conftest, needs the base installation only."""
    parts = path.relative_to(_ROOT / "tests").parts
    if parts and parts[0] not in FOLDERS:
        return False
    module = path / "conftest.py" if path.is_dir() else path
    return not parts or module.suffix != ".py" or not module.exists() or not needs(module)


def _imports(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
