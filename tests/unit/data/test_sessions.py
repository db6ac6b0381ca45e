"""What docstrings of the data room show is what happens."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import edge_sdk.data

MODULES = [found.name for found in pkgutil.iter_modules(edge_sdk.data.__path__, "edge_sdk.data.")]
WITH_SESSIONS = {"arrays", "holdout", "owned", "rows"}


@pytest.mark.parametrize("name", MODULES)
def test_sessions_in_docstrings_run(name: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(name))
    assert not failed
    assert tried or name.rpartition(".")[2] not in WITH_SESSIONS
