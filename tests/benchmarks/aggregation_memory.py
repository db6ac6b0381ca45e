"""Peak resident memory of aggregation above an idle process, in models, and its slope per further update."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from coordinator.aggregation.coverage import aggregate
from tests.benchmarks._measure import Figure, show
from tests.benchmarks.aggregation import sources, write_updates
from tests.support.bert import MINILM, weights

BAR = 3.0
_COUNTS = (10, 30, 50)


def run() -> Figure:
    with tempfile.TemporaryDirectory() as folder:
        write_updates(Path(folder), max(_COUNTS))
        peaks = {count: _peak_in_child(folder, count) for count in _COUNTS}
    slope = (peaks[_COUNTS[-1]] - peaks[_COUNTS[0]]) / (_COUNTS[-1] - _COUNTS[0])
    rows = [(f"peak with {count} updates", f"{peak:.3f} models") for count, peak in peaks.items()]
    show("memory of aggregation: base and result are one model each", [*rows, ("per update", f"{slope:.5f} models")])
    return Figure(
        "aggregation_memory", peaks[max(_COUNTS)], BAR, f"models at {max(_COUNTS)} updates, slope {slope:.5f}"
    )


def _peak_in_child(folder: str, count: int) -> float:
    """A process's peak never falls, so every count has its own."""
    command = [sys.executable, "-m", "tests.benchmarks.aggregation_memory", folder, str(count)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _peak(folder: Path, count: int) -> float:
    """In models: from before the base is loaded to the peak of aggregating ``count`` updates."""
    before = _peak_bytes()
    base = weights(MINILM, seed=0)
    aggregate(base, sources(folder, count), floor=0.0)
    return (_peak_bytes() - before) / sum(array.nbytes for array in base.values())


def _peak_bytes() -> int:
    """From Linux itself: ``ru_maxrss`` would start at the peak of the process that started this one."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))


if __name__ == "__main__":
    print(_peak(Path(sys.argv[1]), int(sys.argv[2])))
