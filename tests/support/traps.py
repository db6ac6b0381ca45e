"""Everything that runs code out of bytes raises: in this process, or in all that are started with :func:`armed_apart`.

``marshal`` still serves Python's own imports, whose byte code it reads.
"""

from __future__ import annotations

import importlib.util
import marshal
import os
import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

_ROOT = Path(__file__).parents[2]
_HERE = {pickle: ("load", "loads"), marshal: ("load", "loads")}
_LATE = {
    "torch": ("load",),
    "yaml": ("load", "unsafe_load", "full_load"),
    "dill": ("load", "loads"),
    "cloudpickle": ("load", "loads"),
    "joblib": ("load",),
}
Patch = Callable[[ModuleType, str, Any], None]


class TrapError(RuntimeError):
    """Something wanted to run what it was given."""


@contextmanager
def armed() -> Iterator[None]:
    """In this process."""
    import pytest

    with pytest.MonkeyPatch().context() as patch:
        _arm(patch.setattr)
        try:
            yield
        finally:
            sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Late)]


def armed_apart(folder: Path) -> dict[str, str]:
    """An environment for processes, and all that they start."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text("from tests.support.traps import arm\n\narm()\n", encoding="utf-8")
    return {"PYTHONPATH": os.pathsep.join((str(folder), str(_ROOT), os.environ.get("PYTHONPATH", "")))}


def arm() -> None:
    """For good, in a process that does nothing else."""
    _arm(setattr)


def _arm(patch: Patch) -> None:
    for module, names in _HERE.items():
        _set(module, names, patch)
    patch(pickle, "Unpickler", _Unpickler)
    for name, names in _LATE.items():
        if name in sys.modules:
            _set(sys.modules[name], names, patch)
    sys.meta_path.insert(0, _Late(patch))


def _set(module: ModuleType, names: Sequence[str], patch: Patch) -> None:
    for name in names:
        if hasattr(module, name):
            patch(module, name, _marshal_trap(name) if module is marshal else _trap(f"{module.__name__}.{name}"))


def _trap(name: str) -> Callable[..., NoReturn]:
    def trap(*_: object, **__: object) -> NoReturn:
        raise TrapError(f"{name} is called")

    return trap


def _marshal_trap(name: str) -> Callable[..., object]:
    real = getattr(marshal, name)

    def trap(*given: object) -> object:
        if sys._getframe(1).f_code.co_filename.startswith("<frozen "):
            return real(*given)
        raise TrapError(f"marshal.{name} is called")

    return trap


class _Unpickler(pickle.Unpickler):
    """Others derive theirs from it while they are imported."""

    def __init__(self, *_: object, **__: object) -> None:
        raise TrapError("pickle.Unpickler is called")


class _Late:
    """Arms what is imported later, as soon as it is."""

    def __init__(self, patch: Patch) -> None:
        self._patch = patch

    def find_spec(self, name: str, _: object = None, __: object = None) -> ModuleSpec | None:
        if name not in _LATE:
            return None
        sys.meta_path.remove(self)  # type: ignore[arg-type]
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)  # type: ignore[arg-type]
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def loaded(module: ModuleType) -> None:
                load(module)
                _set(module, _LATE[name], self._patch)

            spec.loader.exec_module = loaded  # type: ignore[method-assign]
        return spec
