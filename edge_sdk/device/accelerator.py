"""What could compute besides the processor: a GPU's name, and what the installed onnxruntime was built to use."""

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
    """Execution providers in the order that onnxruntime prefers, ``None`` where it cannot be imported.

    A process of its own asks: importing it would cost an idle agent memory, and on a processor that lacks an
    instruction it ends the process.
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
    """The module as jetson-stats names it where its service answers, else the board as the device tree does."""
    compatible = system.text("proc/device-tree/compatible") or ""
    if "nvidia,tegra" not in compatible:
        return None
    return system.output(sys.executable, "-c", _JTOP) or system.text("proc/device-tree/model")
