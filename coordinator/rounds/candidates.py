"""The devices that wait for work. Whoever opens a round takes them, so that no two tasks ask the same device."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from edge_sdk.protocol.messages import Snapshot


@dataclass(frozen=True, slots=True)
class Candidate:
    """A device that asked for work: when, on the steady clock, what it can spare, and which tasks it may work for."""

    asked_s: float
    snapshot: Snapshot
    tasks: frozenset[str]


class Candidates:
    """Of all tasks together, by device."""

    def __init__(self) -> None:
        self._waiting: dict[str, Candidate] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def ask(self, device: str, candidate: Candidate) -> None:
        """In place of what the device said before."""
        self._waiting[device] = candidate

    def forget(self, device: str) -> None:
        """The device waits for nothing."""
        self._waiting.pop(device, None)

    def fresh(self, task: str, since_s: float) -> dict[str, Snapshot]:
        """Who has asked since then and may work for ``task``."""
        return {
            device: candidate.snapshot
            for device, candidate in self._waiting.items()
            if candidate.asked_s >= since_s and task in candidate.tasks
        }

    def take(self, devices: Iterable[str]) -> None:
        """They have work now."""
        for device in devices:
            self.forget(device)

    def keep_tasks(self, tasks: Collection[str]) -> None:
        """Forget whoever waits for none of ``tasks``."""
        self._waiting = {
            device: candidate for device, candidate in self._waiting.items() if not candidate.tasks.isdisjoint(tasks)
        }
