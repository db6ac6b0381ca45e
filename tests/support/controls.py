"""Mechanisms switched off, by name, to show that a test without faults found is one that can find some."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from coordinator.rounds.intake import Intake
from coordinator.store import database
from coordinator.store.updates import Updates
from edge_sdk.inference.slots import Slots
from edge_sdk.protocol.messages import Verdict

CONTROLS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {}


def _control(switch: Callable[[pytest.MonkeyPatch], None]) -> Callable[[pytest.MonkeyPatch], None]:
    CONTROLS[switch.__name__] = switch
    return switch


@_control
def receipt_before_commit(patch: pytest.MonkeyPatch) -> None:
    """The receipt is on its way before the transaction that it stands for is durable."""
    judge = Intake.judge

    def hasty(self: Any, tx: Any, device: str, update: Any, *arguments: Any) -> Any:
        receipt, admitted = judge(self, tx, device, update, *arguments)
        self._resources.send(device, receipt)
        time.sleep(0.05)  # so that it gets out
        return receipt, admitted

    patch.setattr(Intake, "judge", hasty)


@_control
def no_dedupe(patch: pytest.MonkeyPatch) -> None:
    """Whatever comes counts, however often it comes."""
    all_of_them: list[Any] = []
    add = Updates.add

    def remember(self: Any, update: Any) -> Any:
        add(self, update)
        all_of_them.append(update)
        return update

    def accepted(_: Any, task: str, number: int) -> tuple[Any, ...]:
        return tuple(it for it in all_of_them if (it.task, it.round, it.verdict) == (task, number, Verdict.ACCEPTED))

    patch.setattr(Updates, "add", remember)
    patch.setattr(Updates, "get", lambda *_: None)
    patch.setattr(Updates, "accepted", accepted)


@_control
def no_sync(patch: pytest.MonkeyPatch) -> None:
    """The store leaves to the kernel when bytes get to the disk."""
    patch.setattr(database, "_PRAGMAS", ("journal_mode=WAL", "synchronous=OFF", "foreign_keys=ON"))


@_control
def one_slot(patch: pytest.MonkeyPatch) -> None:
    """A release is staged over the one that runs."""
    patch.setattr(Slots, "_other", lambda self: self._letter() or "a")
