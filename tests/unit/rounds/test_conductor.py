"""What devices are told that cannot train a task: a real conductor and run on a tiny model, without a broker."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.config import CoordinatorConfig
from coordinator.resources import Resources
from coordinator.rounds.conductor import Conductor, Stage
from coordinator.store.opening import open_store
from edge_sdk.elastic.runtimes import Runtime
from edge_sdk.elastic.submodel import AdapterMethod
from edge_sdk.protocol.messages import CoordinatorMessage, Offer, Part, Snapshot, Wait
from edge_sdk.transport.blob_folder import BlobFolder
from tests.support.motion_task import motion_task

pytestmark = pytest.mark.xdist_group("sensor-transformer-time-series-classification")  # whose templates these are
REASON = "task motion cannot be trained on onnx; run the agent with --runtime torch"
Sent = list[tuple[str, CoordinatorMessage]]


@pytest.fixture
def sent() -> Sent:
    """What devices were sent, in order."""
    return []


@pytest.fixture
def conductor(tmp_path: Path, sent: Sent, template_cache: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Conductor:
    """Of a task with DoRA, ready for its first round; work is done at once."""
    for name, value in template_cache.items():
        monkeypatch.setenv(name, value)
    settings = CoordinatorConfig(state_dir=tmp_path, broker="", threads=1, gather_s=0)
    store, config = open_store(tmp_path), motion_task(tmp_path, AdapterMethod.DORA)
    with store.transaction() as tx:
        tx.tasks.add(config.name, b"", 0.0)
        for device in ("light", "heavy"):
            tx.devices.hello(device, "unknown", 0, 0.0)
    resources = Resources(
        settings=settings,
        store=store,
        blobs=BlobFolder(settings.blob_dir),
        key=Ed25519PrivateKey.generate(),
        send=lambda device, message: sent.append((device, message)),
        fetch=lambda *_: None,
        cancel=lambda _: None,
        submit=lambda work, then: then(work()),
    )
    made = Conductor(config, resources)
    made.start()
    return made


def able_to_train_on(runtime: Runtime) -> Snapshot:
    memory = 2 << 30
    return Snapshot(
        memory_total_bytes=memory,
        memory_available_bytes=memory,
        training_memory_bytes=memory,
        inference_memory_bytes=memory,
        threads=1,
        runtime=runtime,
    )


def test_devices_on_the_wrong_runtime_are_told_and_the_log_says_what_the_round_waits_for(
    conductor: Conductor, sent: Sent, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    for _ in range(2):
        conductor.device_ready("light", able_to_train_on(Runtime.ONNX))
        conductor.tick({})

    assert [(device, message.reason) for device, message in sent if isinstance(message, Wait)] == [
        ("light", REASON)
    ] * 2
    assert [record.getMessage() for record in caplog.records] == [
        f"light is left out: {REASON}",
        "no round opens: it needs 1 devices; 0 ask for work, and 0 of them can train a submodel; left out: light",
    ]
    assert conductor.stage is Stage.GATHERING


def test_device_that_asked_before_the_task_was_ready_gets_no_offer_it_cannot_use(
    conductor: Conductor, sent: Sent
) -> None:
    conductor.stage = Stage.PREPARING
    conductor.device_ready("light", able_to_train_on(Runtime.ONNX))
    conductor.stage = Stage.GATHERING
    conductor.tick({})

    assert not any(isinstance(message, Offer) for _, message in sent)


def test_device_that_comes_back_on_another_runtime_is_not_sent_its_offer_again(
    conductor: Conductor, sent: Sent
) -> None:
    conductor.device_ready("heavy", able_to_train_on(Runtime.TORCH))
    conductor.tick({})
    (device, offer), *_ = [(device, message) for device, message in sent if isinstance(message, Offer)]
    assert device == "heavy"
    assert {entry.part for entry in offer.manifest} == {Part.WEIGHTS, Part.FROZEN, Part.CONFIG}

    conductor.device_ready("heavy", able_to_train_on(Runtime.ONNX))
    assert sent[-1] == ("heavy", Wait(retry_after_s=10.0, reason=REASON))
