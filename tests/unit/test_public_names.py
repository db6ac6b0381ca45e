"""The façade: every public name is there, and no other."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

import edge_sdk


def names_for_type_checkers() -> dict[str, str]:
    """What ``if TYPE_CHECKING`` imports: name to module. It must tell type checkers what is loaded at run time."""
    tree = ast.parse(Path(inspect.getfile(edge_sdk)).read_text(encoding="utf-8"))
    branch = next(node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in branch.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names}


@pytest.mark.parametrize("name", edge_sdk.__all__)
def test_public_name_resolves_to_its_documented_home(name: str) -> None:
    found = getattr(edge_sdk, name)
    assert found.__name__ == name
    assert found.__module__ == names_for_type_checkers()[name]
    assert found.__doc__


def test_public_names_are_exactly_the_declared_ones() -> None:
    assert sorted(edge_sdk.__all__) == sorted(names_for_type_checkers()) == sorted(edge_sdk._HOMES)
    assert set(dir(edge_sdk)) == {*edge_sdk.__all__, "__version__"}


def test_other_name_is_refused() -> None:
    with pytest.raises(AttributeError, match="Agnet"):
        _ = edge_sdk.Agnet
