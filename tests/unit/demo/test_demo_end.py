"""How the demo ends where its task did not."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from coordinator.demo import main
from coordinator.demo.main import ELASTIC, DemoOptions, run_demo
from coordinator.local import TaskFailedError
from coordinator.store.database import Store
from coordinator.store.opening import open_store
from coordinator.store.states import TaskStatus

WHY = "its last 5 rounds had too few updates (8 x storage)"


def test_demo_whose_task_failed_says_why_and_begins_it_again_when_it_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = list[TaskStatus]()

    def run(_: DemoOptions, store: Store, __: object) -> None:
        with store.transaction() as tx:
            seen.append(tx.tasks.get(ELASTIC).status)
            tx.tasks.set_status(ELASTIC, TaskStatus.FAILED, WHY)

    monkeypatch.setattr(main, "_run_processes", run)
    state = tmp_path / "demo"
    (state / "coordinator").mkdir(parents=True)
    with closing(open_store(state / "coordinator")) as store, store.transaction() as tx:
        tx.tasks.add(ELASTIC, b"{}", 0.0)
        tx.tasks.set_status(ELASTIC, TaskStatus.FAILED, WHY)
    options = DemoOptions(
        state, None, None, rounds=1, seed=0, compare=False, resume=True, report=tmp_path / "report.html"
    )
    with pytest.raises(TaskFailedError, match="task all-devices failed: its last 5 rounds had too few updates"):
        run_demo(options)
    assert seen == [TaskStatus.PENDING]
