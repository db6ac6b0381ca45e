"""Accelerators: a GPU's name, and the execution providers that the installed onnxruntime was built with."""

from __future__ import annotations

import sys
from functools import cache

from edge_sdk.device.system import System

_IMPORT_S = 60.0  # on a card in a small board that has just booted
_PROVIDERS = "import onnxruntime; print(*onnxruntime.get_available_providers())"
_JTOP = "from jtop import jtop\nwith jtop() as board: print(board.board['hardware']['Module'])"


def accelerator_name(system: System) -> str | None:
    """The first NVIDIA GPU, or the Jetson module; ``None`` where none was found."""
    return _nvidia_driver(system) or _nvidia_tool(system) or _jetson(system)


@cache
def onnxruntime_providers() -> tuple[str, ...] | None:
    """Execution providers in the order that onnxruntime prefers, ``None`` if it cannot be imported.

    Another process imports it: here the import would cost an idle agent memory, and on a processor that lacks an
    instruction it would kill the agent.
    """
    answer = System().output(sys.executable, "-c", _PROVIDERS, timeout_s=_IMPORT_S)
    return None if answer is None else tuple(answer.split())


def _nvidia_driver(system: System) -> str | None:
    for path in system.matching("proc/driver/nvidia/gpus/*/information"):
        for line in (system.text(path) or "").splitlines():
            name, _, value = line.partition(":")
            if name == "Model":
                return value.strip()
    return None


def _nvidia_tool(system: System) -> str | None:
    listed = system.output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    return listed.splitlines()[0].strip() if listed else None


def _jetson(system: System) -> str | None:
    """The Jetson module's name by jetson-stats if its service answers, else the board's by the device tree.

    Its own instructions install it for the system's Python, which an agent in a virtual environment does not see.
    """
    compatible = system.text("proc/device-tree/compatible") or ""
    if "nvidia,tegra" not in compatible:
        return None
    told = (system.output(python, "-c", _JTOP) for python in (sys.executable, "python3"))
    return next(filter(None, told), None) or system.text("proc/device-tree/model")
