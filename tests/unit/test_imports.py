"""What a fresh interpreter loads: the device side stays light, and never needs the coordinator."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import edge_sdk

HEAVY = ("torch", "transformers", "psutil", "paho", "onnxruntime", "rich", "sqlalchemy")
OF_TORCH = ("edge_sdk.modules.", "edge_sdk.training.torch_runtime")


def loaded_by(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*sorted(name.split('.')[0] for name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_protocol_loads_nothing_heavy() -> None:
    modules = ("messages", "topics", "blobs", "tensors", "signing")
    statement = "\n".join(f"import edge_sdk.protocol.{module}" for module in modules)
    assert not loaded_by(statement) & set(HEAVY)


def test_package_loads_nothing_before_a_name_is_used() -> None:
    assert not loaded_by("import edge_sdk") & {*HEAVY, "numpy", "msgspec"}


def test_agent_without_a_model_loads_neither_onnxruntime_nor_torch() -> None:
    late = {"onnxruntime", "tokenizers", "cryptography", "torch", "transformers", "PIL", "pyarrow", "pandas"}
    assert not loaded_by("from edge_sdk import Agent") & late


def test_device_with_a_certificate_pays_for_no_cryptography_before_it_renews_it() -> None:
    assert "cryptography" not in loaded_by(
        "from edge_sdk.agent.uplink import Uplink\nfrom edge_sdk.security import enrolment"
    )


@pytest.mark.parametrize(
    "module", ["edge_sdk.sessions", pytest.param("coordinator.models.running", marks=pytest.mark.beyond_base)]
)
def test_onnxruntime_tells_nobody_that_it_was_loaded(module: str, tmp_path: Path) -> None:
    """From 1.29 on it gives the device a number and tells Microsoft what it does, but not on CI: this is not CI."""
    environment = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    command = [sys.executable, "-B", "-c", f"import {module}"]
    subprocess.run(command, env=environment | {"HOME": str(tmp_path)}, check=True)
    assert not list(tmp_path.rglob("*"))


@pytest.mark.beyond_base  # the torch runtime is a part of the SDK too
@pytest.mark.parametrize("deleted", [("coordinator", "torch"), pytest.param(("coordinator",), marks=pytest.mark.long)])
def test_sdk_imports_with_the_coordinator_deleted(deleted: tuple[str, ...]) -> None:
    """All of it but what is torch's own, without torch either; and that too."""
    sources = Path(edge_sdk.__file__).parent.rglob("*.py")
    root = Path(edge_sdk.__file__).parents[1]
    names = sorted(".".join(path.relative_to(root).with_suffix("").parts) for path in sources)
    names = [name for name in names if "torch" not in deleted or not name.startswith(OF_TORCH)]
    block = f"import sys, importlib\nfor name in {deleted!r}: sys.modules[name] = None"
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"{block}\nfor name in {names!r}: importlib.import_module(name.removesuffix('.__init__'))",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_public_names_are_exactly_those_that_resolve() -> None:
    assert sorted(edge_sdk.__all__) == sorted(edge_sdk._HOMES)
    for name in edge_sdk.__all__:
        assert getattr(edge_sdk, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        edge_sdk.nonsense  # noqa: B018
