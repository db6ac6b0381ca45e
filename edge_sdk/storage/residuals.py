"""Residuals: what a device's updates have lost to their encoding, one file per round, until a later round has used it.

The file's name contains the round. So a round that is trained again after a crash starts from the residual of the round
before, as it did the first time, and ends in the same bytes.
"""

from __future__ import annotations

import time
from pathlib import Path

from edge_sdk.disk import disk_errors, sync

KEEP_S = 7 * 86_400.0
"""The residual of a task that is no longer trained is removed after this time."""


class Residuals:
    """The residuals in the folder ``path``."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def before(self, task: str, round_number: int) -> Path | None:
        """The newest residual of ``task`` from a round before ``round_number``; ``None`` if there is none."""
        older = [number for number in self._rounds(task) if number < round_number]
        return self._file(task, max(older)) if older else None

    def keep(self, task: str, round_number: int, file: Path) -> None:
        """Move ``file``, which is durable, here as the residual of a round. Of the task, it and the one before stay.

        Raises ``StorageError``.
        """
        kept = {self._file(task, round_number), self.before(task, round_number)}
        with disk_errors(self._path):
            self._path.mkdir(exist_ok=True)
            file.replace(self._file(task, round_number))
            sync(self._path)
            for other in self._path.iterdir():
                is_old = time.time() - other.stat().st_mtime > KEEP_S
                if other not in kept and (is_old or other.name.startswith(f"{task}.")):
                    other.unlink()

    def _rounds(self, task: str) -> list[int]:
        return [int(file.suffixes[0][1:]) for file in self._path.glob(f"{task}.*.safetensors")]

    def _file(self, task: str, round_number: int) -> Path:
        return self._path / f"{task}.{round_number}.safetensors"
