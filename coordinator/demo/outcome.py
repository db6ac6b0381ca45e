"""What the demo found out, as rows to print and to draw; read from the store, so that nothing is remembered twice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DeviceRow:
    """One device: what it trained last and what it runs now. ``None`` where it did not happen."""

    device: str
    profile: str
    trained: str | None
    parameters: int | None
    share_of_full: float | None
    predicted_memory_bytes: int | None
    measured_memory_bytes: int | None
    downloaded_bytes: int
    uploaded_bytes: int
    seconds: float
    failures: tuple[str, ...]
    inference: str | None
    inference_share: float | None
    accuracy: float | None
    samples: int
    latency_ms: float | None


@dataclass(frozen=True, slots=True)
class RoundRow:
    """One round of one task: accuracy of the new global model by width, on the coordinator's test texts."""

    number: int
    accuracy: Mapping[str, float]
    updates: int
    bytes_moved: int
    seconds: float


@dataclass(frozen=True, slots=True)
class TaskOutcome:
    """The rounds of one task, in order; ``before`` is the accuracy by width before the first."""

    title: str
    before: Mapping[str, float]
    rounds: tuple[RoundRow, ...]

    @property
    def final(self) -> Mapping[str, float]:
        """Accuracy by width after the last round."""
        return self.rounds[-1].accuracy if self.rounds else {}

    @property
    def bytes_moved(self) -> int:
        """Both ways, all rounds."""
        return sum(row.bytes_moved for row in self.rounds)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Everything that the demo shows."""

    model: str
    seconds: float
    devices: tuple[DeviceRow, ...]
    elastic: TaskOutcome
    able_only: TaskOutcome | None

    @property
    def tasks(self) -> tuple[TaskOutcome, ...]:
        """The runs, the elastic one first."""
        return (self.elastic,) if self.able_only is None else (self.elastic, self.able_only)
