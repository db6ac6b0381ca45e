"""What an agent takes of a device before it works: disk, memory while idle, seconds until it asks for work.

The base installation goes into a virtual environment of its own, without pip, with the versions that CI pins; the agent
measured is the one of that environment. Its disk is that of ``site-packages``, compiled files included, over what the
files of torch, transformers, peft and all that they require take in the environment that runs this benchmark, compiled
ones included too. What the Debian package brings, which leaves out what no agent uses, is told beside it. Memory is
resident (VmRSS), in 10^6 bytes, as its bar.

The figure is the worst of the three ratios to their bars, so at most 1 is a pass. Disk and memory do not depend on what
else the machine does; the seconds do, so the processor's time is shown beside them.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import venv
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from edge_sdk.service.debian.build import stage
from tests.benchmarks._fleet import say
from tests.benchmarks._idle_agent import IdleAgent, idle_agents
from tests.benchmarks._measure import Figure, show

DISK_BAR, MEMORY_BAR_MB, START_BAR_S = 0.15, 60.0, 1.0
_ROOT = Path(__file__).parents[2]
_CONSTRAINTS = _ROOT / ".ci" / "constraints.txt"
_PEERS = ("torch", "transformers", "peft")
_FLOOR = ("onnxruntime", "tokenizers")  # what runs a graph on texts: no installation of this kind can be less
_REPEATS = 7
_MB = 1e6


def run() -> Figure:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        say("  installing the device's part")
        python = _install(folder / "device")
        stage(folder / "board", Path(sys.executable), str(_ROOT), _CONSTRAINTS)
        sizes_mb = _Sizes(
            base=_size_mb(folder / "device" / "lib"),
            package=_size_mb(folder / "board"),
            floor=_installed_mb(_FLOOR),
            peers=_installed_mb(_PEERS),
        )
        without = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        agents = idle_agents(folder / "fleet", _REPEATS, python, without)
    resident_mb = statistics.median(agent.resident_bytes for agent in agents) / _MB
    ready_s = statistics.median(agent.ready_s for agent in agents)
    disk = sizes_mb.base / sizes_mb.peers
    figures = {"disk": disk, "disk_of_the_deb": sizes_mb.package / sizes_mb.peers}
    figures |= {"memory_mb": resident_mb, "start_s": ready_s}
    show(f"the device's installation; medians of {_REPEATS} starts", _rows(sizes_mb, agents))
    worst = max(disk / DISK_BAR, resident_mb / MEMORY_BAR_MB, ready_s / START_BAR_S)
    more = {name: round(value, 4) for name, value in figures.items()}
    return Figure("footprint", worst, 1.0, "the worst of disk, memory and start over its bar", more)


class _Sizes(NamedTuple):
    """In MB."""

    base: float
    package: float
    floor: float
    peers: float

    def told(self, mb: float) -> str:
        return f"{mb:.0f} MB, so {mb / self.peers:.3f}"


def _rows(sizes_mb: _Sizes, agents: list[IdleAgent]) -> list[tuple[str, str]]:
    def median(name: str) -> float:
        return statistics.median(getattr(agent, name) for agent in agents)

    ready_s = [agent.ready_s for agent in agents]
    return [
        (f"disk of {', '.join(_PEERS)} and what they require", f"{sizes_mb.peers:.0f} MB"),
        ("disk of the base installation by pip", sizes_mb.told(sizes_mb.base)),
        (f"of that, {' and '.join(_FLOOR)} alone", sizes_mb.told(sizes_mb.floor)),
        ("disk of the Debian package, unpacked", sizes_mb.told(sizes_mb.package)),
        ("idle agent, resident", f"{median('resident_bytes') / _MB:.1f} MB"),
        ("idle agent, proportional", f"{median('proportional_bytes') / _MB:.1f} MB"),
        ("start until ready", f"{median('ready_s'):.2f} s ({min(ready_s):.2f} to {max(ready_s):.2f})"),
        ("processor time until ready", f"{median('processor_s'):.2f} s"),
    ]


def _install(folder: Path) -> str:
    """The interpreter of a new environment with this project's base installation."""
    venv.create(folder, with_pip=False)
    python = str(folder / "bin" / "python")
    pip = (sys.executable, "-m", "pip", "--python", python)
    subprocess.run([*pip, "install", "--quiet", "-c", str(_CONSTRAINTS), str(_ROOT)], check=True, stdout=sys.stderr)
    return python


def _size_mb(folder: Path) -> float:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file()) / _MB


def _installed_mb(names: tuple[str, ...]) -> float:
    """Of these distributions and all that they require here, extras left out."""
    found: dict[str, Distribution] = {}
    queue = [*names]
    while queue:
        name = canonicalize_name(queue.pop())
        if name not in found:
            found[name] = distribution(name)
            required = map(Requirement, found[name].requires or ())
            queue += [one.name for one in required if one.marker is None or one.marker.evaluate({"extra": ""})]
    files = {Path(file.locate()) for one in found.values() for file in one.files or ()}
    return sum(path.stat().st_size for path in files if path.is_file()) / _MB
