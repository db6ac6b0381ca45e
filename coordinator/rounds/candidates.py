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
    """The devices that wait for work, of all tasks together."""

    def __init__(self) -> None:
        self._waiting: dict[str, Candidate] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def ask(self, device: str, candidate: Candidate) -> None:
        """A device asks for work; this replaces what it said before."""
        self._waiting[device] = candidate

    def forget(self, device: str) -> None:
        """The device no longer waits for work."""
        self._waiting.pop(device, None)

    def of(self, task: str) -> dict[str, Snapshot]:
        """Who waits and may work for ``task``."""
        return {device: one.snapshot for device, one in self._waiting.items() if task in one.tasks}

    def keep_since(self, since_s: float) -> None:
        """Forget the devices that have not asked since then: they are gone, and nobody has to make room for them."""
        self._waiting = {device: one for device, one in self._waiting.items() if one.asked_s >= since_s}

    def take(self, devices: Iterable[str]) -> None:
        """These devices have work now, and no longer wait."""
        for device in devices:
            self.forget(device)

    def keep_tasks(self, tasks: Collection[str]) -> None:
        """Forget the devices that may work for none of ``tasks``."""
        self._waiting = {
            device: candidate for device, candidate in self._waiting.items() if not candidate.tasks.isdisjoint(tasks)
        }
