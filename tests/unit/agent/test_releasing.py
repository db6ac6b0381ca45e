"""Releases on the agent's installer: what waits there, and what was decided meanwhile."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from queue import Queue
from threading import Event

import pytest

from edge_sdk.agent.releasing import Releases, Tried
from edge_sdk.agent.tasks import OwnTasks
from edge_sdk.config import AgentConfig
from edge_sdk.protocol.messages import Release, Standing
from edge_sdk.protocol.releases import Order, Trial
from edge_sdk.storage.cache import BlobCache
from tests.support.goods import Goods
from tests.support.logistic_graph import examples
from tests.support.signed import DEVICE

LONG = Trial(seconds=3600.0)
PATIENCE_S = 20.0


class Device:
    """A device with all blobs; ``said`` are the outcomes."""

    def __init__(self, folder: Path) -> None:
        self.goods = Goods(folder, DEVICE)
        texts = examples(20, seed=1)
        config = AgentConfig(
            device=DEVICE,
            broker="mqtt://127.0.0.1",
            state_dir=folder / "device",
            root=folder / "root.json",
            held_out_share=0.5,
        )
        self.tasks = OwnTasks(list(zip(texts.texts, texts.labels, strict=True)), config)
        self.releases = Releases(config, self.tasks)
        self.cache = BlobCache(self.goods.blobs.path, 1 << 30)
        self.said: Queue[object] = Queue()

    def install(self, message: Release) -> None:
        order = self.releases.check(message)
        assert isinstance(order, Order)
        self.releases.install(order, self.cache, self.said.put)

    def heard(self) -> tuple[int, Standing | None]:
        outcome = self.said.get(timeout=PATIENCE_S)
        assert isinstance(outcome, Tried)
        return outcome.report.release, outcome.report.standing

    def close(self) -> None:
        self.releases.close()


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    with closing(Device(tmp_path)) as device:
        yield device


def test_release_that_waits_before_the_end_of_another_trial_has_a_trial_of_its_own(device: Device) -> None:
    """The first one's trial is over while the second waits, as behind another task's that is being measured."""
    device.install(device.goods.release(1, trial=LONG))
    assert device.heard() == (1, Standing.TRYING)
    may_go_on = Event()
    device.releases._installer.submit(lambda: may_go_on.wait(PATIENCE_S))
    device.install(device.goods.release(2, trial=LONG))
    device.releases.end_trials(time.monotonic() + 3601, device.said.put)
    may_go_on.set()
    assert device.heard() == (2, Standing.TRYING)
    device.releases._installer.submit(lambda: None).result(PATIENCE_S)
    serving = device.tasks.chosen(None).serving
    assert (serving.release, serving.trial_is_over(time.monotonic())) == (2, False)
    assert device.said.empty(), "neither is confirmed"
