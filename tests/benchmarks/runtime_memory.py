"""Peak resident memory of an agent that trains MiniLM with adapters, over a torch process with peft that does the same.

An agent that trains is two processes, the agent and its training process; the figure counts both, each at its own peak
(VmHWM), so pages that they share count twice. Every process is a fresh one. The same is measured where everything above
the embeddings is trained, which takes gradients and two moments for each of its parameters on either side.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

from tests.benchmarks._idle_agent import idle_agents
from tests.benchmarks._measure import Figure, show
from tests.benchmarks._runtimes import ADAPTERS, ALL_BUT_EMBEDDINGS, Load, Sides, compare

BAR = 0.4
_REPEATS = 3
_MIB = 1 << 20


def run() -> Figure:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        agent_mib = statistics.median(agent.peak_bytes for agent in idle_agents(folder / "idle", _REPEATS)) / _MIB
        light, whole = (compare(folder / load.part.value, load, _REPEATS) for load in (ADAPTERS, ALL_BUT_EMBEDDINGS))
    show("the agent while it waits for its training process", [("peak", f"{agent_mib:.0f} MiB")])
    _show("MiniLM with adapters", ADAPTERS, light)
    _show("MiniLM, all but the embeddings", ALL_BUT_EMBEDDINGS, whole)
    more = {
        "training_process_alone": round(light.ours.peak_mib / light.torch.peak_mib, 4),
        "all_but_embeddings": round((agent_mib + whole.ours.peak_mib) / whole.torch.peak_mib, 4),
        "step_time": round(light.step_ratio, 4),
        "step_time_all_but_embeddings": round(whole.step_ratio, 4),
    }
    figure = (agent_mib + light.ours.peak_mib) / light.torch.peak_mib
    return Figure("runtime_memory", figure, BAR, "agent and training process over torch and peft", more)


def _show(title: str, load: Load, sides: Sides) -> None:
    rows = [("training process", str(sides.ours)), ("torch, transformers, peft", str(sides.torch))]
    show(f"{title}, {load}; medians of {_REPEATS} processes", rows)
