"""What devices are told that cannot train a task: a real conductor and run on a tiny model, without a broker."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.config import CoordinatorConfig, parse_encoding
from coordinator.resources import Resources
from coordinator.rounds.agenda import Agenda
from coordinator.rounds.conductor import Conductor, Stage
from coordinator.rounds.machine import MAX_ABANDONED
from coordinator.rounds.tasks import change_status
from coordinator.store.opening import open_store
from coordinator.store.records import DeviceRecord, RoundRecord
from coordinator.store.states import Phase, TaskStatus
from edge_sdk.elastic.runtimes import Runtime
from edge_sdk.elastic.submodel import AdapterMethod, ModelTask
from edge_sdk.protocol.blobs import update_id
from edge_sdk.protocol.codecs import rows_of
from edge_sdk.protocol.messages import (
    FP32,
    BlobEntry,
    CoordinatorMessage,
    Encoding,
    EncodingKind,
    Holding,
    Offer,
    Part,
    Ready,
    Receipt,
    Refusal,
    Snapshot,
    TrainingReport,
    UpdateReady,
    Verdict,
    Wait,
)
from edge_sdk.protocol.tensors import MAX_HEADER_BYTES
from edge_sdk.transport.blob_folder import BlobFolder
from tests.support.motion_task import motion_task

pytestmark = pytest.mark.xdist_group("sensor-transformer-time-series-classification")  # whose templates these are
REASON = "task motion: it cannot be trained on onnx; run the agent with --runtime torch"
Sent = list[tuple[str, CoordinatorMessage]]


@pytest.fixture
def sent() -> Sent:
    """What devices were sent, in order."""
    return []


@pytest.fixture
def agenda(tmp_path: Path, sent: Sent, template_cache: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Agenda:
    """Of a task with DoRA and updates in int8, about to begin; work is done at once."""
    for name, value in template_cache.items():
        monkeypatch.setenv(name, value)
    settings = CoordinatorConfig(state_dir=tmp_path, broker="", threads=1, gather_s=0)
    store = open_store(tmp_path)
    config = motion_task(tmp_path, AdapterMethod.DORA, encoding=parse_encoding("int8"))
    with store.transaction() as tx:
        tx.tasks.add(config.name, msgspec.json.encode(config), 0.0)
        for device in ("light", "heavy"):
            tx.devices.hello(device, "unknown", 0, 0.0)
    resources = Resources(
        settings=settings,
        store=store,
        blobs=BlobFolder(settings.blob_dir),
        key=Ed25519PrivateKey.generate(),
        send=lambda device, message: sent.append((device, message)) is None,
        fetch=lambda *_: None,
        cancel=lambda _: None,
        submit=lambda work, then, _: then(work()),
        sweep=lambda: None,
    )
    return Agenda(resources)


@pytest.fixture
def conductor(agenda: Agenda) -> Conductor:
    """Ready for its first round."""
    agenda._follow()
    return agenda._conductors["motion"]


def a_device(name: str) -> DeviceRecord:
    return DeviceRecord(name, "unknown", 0, True, None, 1.0, 0.0)


def able_to_train_on(runtime: Runtime, holding: Holding | None = None) -> Ready:
    memory = 2 << 30
    snapshot = Snapshot(
        memory_total_bytes=memory,
        memory_available_bytes=memory,
        training_memory_bytes=memory,
        inference_memory_bytes=memory,
        threads=1,
        runtime=runtime,
    )
    return Ready(snapshot=snapshot, holdings=() if holding is None else (holding,))


def test_update_for_another_task_comes_while_this_one_is_being_prepared(agenda: Agenda) -> None:
    agenda._resources = replace(agenda._resources, submit=lambda *_: None)
    agenda._follow()
    assert agenda._conductors["motion"].stage is Stage.PREPARING
    agenda.blob_fetched("light", "0" * 64)


@pytest.mark.parametrize("status", [*TaskStatus, None])
def test_update_of_a_task_that_is_about_to_begin_is_not_refused(
    agenda: Agenda, sent: Sent, status: TaskStatus | None
) -> None:
    """It may be of the round that was open when the coordinator ended, and that goes on once others leave it room."""
    with agenda._resources.store.transaction() as tx:
        tx.tasks.set_status("motion", status or TaskStatus.DONE)
    agenda.update_ready("light", an_update("motion" if status else "other", 1, "d" * 64, "light", 1000))
    assert [message.verdict for _, message in sent if isinstance(message, Receipt)] == (
        [] if status in {TaskStatus.PENDING, TaskStatus.RUNNING} else [Verdict.REJECTED]
    )


def test_devices_speak_after_a_task_could_not_be_prepared(agenda: Agenda, sent: Sent) -> None:
    """The agenda lets the task go with its next tick, and a fleet does not wait for that."""
    agenda._resources = replace(agenda._resources, submit=lambda _, __, fail: fail("no model"))
    agenda._follow()
    assert agenda._conductors["motion"].stage is Stage.DONE
    agenda.device_ready(a_device("light"), able_to_train_on(Runtime.TORCH))
    agenda.update_ready("light", an_update("motion", 1, "d" * 64, "light", 1000))
    agenda.blob_fetched("light", "0" * 64)
    agenda.sweep()
    assert [message.reason for _, message in sent if isinstance(message, Wait)] == ["no task is waiting"]


def test_command_that_comes_while_a_task_begins_or_goes_on_is_not_lost(agenda: Agenda) -> None:
    """Another process gives it between two statements of the coordinator, which wrote `running` over it."""
    store, agenda._resources = agenda._resources.store, replace(agenda._resources, submit=lambda *_: None)
    agenda._follow()
    conductor = agenda._conductors["motion"]
    for task_is_to in (TaskStatus.PAUSED, TaskStatus.STOPPED):
        change_status(store, "motion", task_is_to, 0.0, "a test")
        for begins in (conductor.start, conductor.obey):
            begins(TaskStatus.PENDING)
            with store.reading() as tx:
                assert tx.tasks.get("motion").status is task_is_to


def test_task_that_is_started_again_as_soon_as_it_failed_begins_anew(agenda: Agenda) -> None:
    """It went on as if nobody had started it: the rounds that it had failed by counted, and it failed again."""
    store = agenda._resources.store
    agenda._resources = replace(agenda._resources, submit=lambda _, __, fail: fail("no model"))
    agenda._follow()
    with store.transaction() as tx:
        tx.rounds.add(RoundRecord("motion", 1, "b" * 64, Phase.ABANDONED, 1, 1.0, 2.0, 3.0))
    change_status(store, "motion", TaskStatus.PENDING, 0.0, "a test")
    agenda._resources = replace(agenda._resources, submit=lambda *_: None)
    for _ in range(2):
        agenda.tick({})
    with store.reading() as tx:
        known = tx.tasks.get("motion")
    assert (known.status, known.forgiven) == (TaskStatus.RUNNING, 1)


def test_devices_on_the_wrong_runtime_are_told_and_the_log_says_what_the_round_waits_for(
    agenda: Agenda, conductor: Conductor, sent: Sent, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    for _ in range(2):
        agenda.device_ready(a_device("light"), able_to_train_on(Runtime.ONNX))
        agenda.tick({})

    assert [(device, message.reason) for device, message in sent if isinstance(message, Wait)] == [
        ("light", REASON)
    ] * 2
    assert [record.getMessage() for record in caplog.records] == [
        f"light cannot take part in {REASON}",
        "no round opens: 1 devices are needed; 0 ask for work, and 0 of them can train a submodel; left out: light",
    ]
    assert conductor.stage is Stage.GATHERING


def test_task_whose_offers_are_too_large_to_be_sent_fails_with_that_reason(
    agenda: Agenda, conductor: Conductor, sent: Sent
) -> None:
    """It waits for no deadline: nobody was asked."""
    small = conductor._resources.send
    too_large = replace(conductor._resources, send=lambda to, what: not isinstance(what, Offer) and small(to, what))
    conductor._resources = too_large
    for _ in range(2 * MAX_ABANDONED):
        agenda.device_ready(a_device("light"), able_to_train_on(Runtime.TORCH))
        agenda.tick({})
    assert not [message for _, message in sent if isinstance(message, Offer)]
    with too_large.store.reading() as tx:
        [task] = tx.tasks.all()
    assert task.status is TaskStatus.FAILED
    assert task.failure == "its last 5 rounds had too few updates (5 its offer is too large to be sent)"


def test_device_whose_examples_are_for_another_model_is_left_out(
    agenda: Agenda, conductor: Conductor, sent: Sent
) -> None:
    windows, texts = (
        Holding(suits=suits, examples=8)
        for suits in (ModelTask.TIME_SERIES_CLASSIFICATION, ModelTask.TEXT_CLASSIFICATION)
    )
    agenda.device_ready(a_device("light"), able_to_train_on(Runtime.TORCH, texts))
    agenda.device_ready(a_device("heavy"), able_to_train_on(Runtime.TORCH, windows))
    agenda.tick({})
    words = "its examples are for text-classification, the model is for time-series-classification"
    assert sent[0] == ("light", Wait(retry_after_s=10.0, reason=f"task motion: {words}"))
    assert [device for device, message in sent if isinstance(message, Offer)] == ["heavy"]
    assert conductor.stage is Stage.COLLECTING


def test_device_that_asked_before_the_task_was_ready_gets_no_offer_it_cannot_use(
    agenda: Agenda, conductor: Conductor, sent: Sent
) -> None:
    conductor.stage = Stage.PREPARING
    agenda.device_ready(a_device("light"), able_to_train_on(Runtime.ONNX))
    conductor.stage = Stage.GATHERING
    agenda.tick({})

    assert not any(isinstance(message, Offer) for _, message in sent)


@pytest.mark.usefixtures("conductor")
def test_devices_of_a_large_fleet_are_told_to_ask_seldom(agenda: Agenda, sent: Sent) -> None:
    for number in range(2000):
        agenda.device_ready(a_device(f"device-{number}"), able_to_train_on(Runtime.TORCH))
    waits = [message.retry_after_s for _, message in sent if isinstance(message, Wait)]
    assert [waits[0], waits[599], waits[-1]] == [10.0, 30.0, 48.0]  # 20 a second, and while an answer counts


@pytest.mark.usefixtures("conductor")
def test_devices_that_are_gone_make_no_others_ask_seldom(
    agenda: Agenda, sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever had ever asked was counted, until the coordinator started again."""
    for number in range(2000):
        agenda.device_ready(a_device(f"device-{number}"), able_to_train_on(Runtime.TORCH))
    later_s = time.monotonic() + agenda._resources.settings.ready_valid_s + 1
    monkeypatch.setattr(time, "monotonic", lambda: later_s)
    agenda.tick({})
    agenda.device_ready(a_device("light"), able_to_train_on(Runtime.TORCH))
    assert [message.retry_after_s for _, message in sent if isinstance(message, Wait)][-1] == 10.0


@pytest.mark.usefixtures("conductor")
def test_device_that_comes_back_on_another_runtime_is_not_sent_its_offer_again(agenda: Agenda, sent: Sent) -> None:
    agenda.device_ready(a_device("heavy"), able_to_train_on(Runtime.TORCH))
    agenda.tick({})
    (device, offer), *_ = [(device, message) for device, message in sent if isinstance(message, Offer)]
    assert device == "heavy"
    assert {entry.part for entry in offer.manifest} == {Part.WEIGHTS, Part.FROZEN, Part.CONFIG}

    agenda.device_ready(a_device("heavy"), able_to_train_on(Runtime.ONNX))
    assert sent[-1] == ("heavy", Wait(retry_after_s=10.0, reason=REASON))


@pytest.mark.usefixtures("conductor")
def test_device_gets_its_open_offer_again_whatever_has_become_of_it_meanwhile(agenda: Agenda, sent: Sent) -> None:
    """Nobody asked for its offer back, and its round waits for it."""
    agenda.device_ready(a_device("heavy"), able_to_train_on(Runtime.TORCH))
    agenda.tick({})
    (_, offer) = next((device, message) for device, message in sent if isinstance(message, Offer))
    elsewhere = msgspec.structs.replace(able_to_train_on(Runtime.TORCH), tasks=("other",))
    agenda.device_ready(a_device("heavy"), elsewhere)
    device, again = sent[-1]
    assert isinstance(again, Offer)
    assert (device, again.round, again.submodel) == ("heavy", offer.round, offer.submodel)


def test_offer_says_how_to_write_the_update_and_a_larger_one_is_refused_before_a_byte_is_pulled(
    agenda: Agenda, conductor: Conductor, sent: Sent
) -> None:
    """No feedback, since DoRA's factors are made anew in each round. A device that cannot may answer in fp32."""
    agenda.device_ready(a_device("heavy"), able_to_train_on(Runtime.TORCH))
    agenda.tick({})
    offer = next(message for _, message in sent if isinstance(message, Offer))
    assert offer.encoding == Encoding(kind=EncodingKind.INT8, feedback=False)
    slices = conductor._run.trained_slices(offer.submodel)
    most = sum(4 * rows_of(region.shape)[0] + region.size for region in slices.values()) + MAX_HEADER_BYTES
    other = Encoding(kind=EncodingKind.TOPK)
    for size_bytes, encoding, reason in (
        (most, offer.encoding, ""),
        (most + 1, FP32, ""),
        (most + 1, offer.encoding, f"size: it has {most + 1} bytes, its submodel at most {most}"),
        (most, other, "encoding: it is written in topk, asked for was int8"),
    ):
        del sent[:]
        conductor.update_ready("heavy", announced(offer, "heavy", size_bytes, encoding))
        assert [message.reason for _, message in sent if isinstance(message, Receipt)] == ([reason] if reason else [])


def test_update_of_another_base_or_round_or_under_another_id_is_refused_by_name(
    agenda: Agenda, conductor: Conductor, sent: Sent
) -> None:
    agenda.device_ready(a_device("heavy"), able_to_train_on(Runtime.TORCH))
    agenda.tick({})
    offer = next(message for _, message in sent if isinstance(message, Offer))
    right = announced(offer, "heavy", 1000, FP32)
    for device, update, refusal in (
        ("heavy", announced(msgspec.structs.replace(offer, base_version="d" * 64), "heavy", 1000, FP32), Refusal.BASE),
        ("heavy", announced(msgspec.structs.replace(offer, round=7), "heavy", 1000, FP32), Refusal.ROUND),
        ("light", announced(offer, "light", 1000, FP32), Refusal.ROUND),
        ("heavy", msgspec.structs.replace(right, update_id="e" * 64), Refusal.IDENTITY),
        ("heavy", announced(msgspec.structs.replace(offer, task="other"), "heavy", 1000, FP32), Refusal.TASK),
    ):
        del sent[:]
        agenda.update_ready(device, update)
        ((_, receipt),) = sent
        assert isinstance(receipt, Receipt)
        assert (receipt.verdict, receipt.refusal) == (Verdict.REJECTED, refusal)
    del sent[:]
    conductor.update_ready("heavy", right)
    assert not sent


def test_device_that_says_more_and_more_updates_has_one_on_its_way(
    agenda: Agenda, conductor: Conductor, sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    coming = set[str]()
    resources = replace(
        conductor._resources,
        fetch=lambda _, digest, __: coming.add(digest),
        cancel=coming.remove,
    )
    monkeypatch.setattr(conductor._intake, "_resources", resources)
    agenda.device_ready(a_device("heavy"), able_to_train_on(Runtime.TORCH))
    agenda.tick({})
    offer = next(message for _, message in sent if isinstance(message, Offer))
    for number in range(100):
        conductor.update_ready("heavy", announced(offer, "heavy", 1000, FP32, digest=f"{number:064x}"))
    assert coming == conductor._intake.coming == {f"{99:064x}"}


def announced(offer: Offer, device: str, size_bytes: int, encoding: Encoding, digest: str = "c" * 64) -> UpdateReady:
    return an_update(offer.task, offer.round, offer.base_version, device, size_bytes, encoding, digest)


def an_update(
    task: str, number: int, base: str, device: str, size_bytes: int, encoding: Encoding = FP32, digest: str = "c" * 64
) -> UpdateReady:
    update = BlobEntry(part=Part.WEIGHTS, digest=digest, size_bytes=size_bytes)
    return UpdateReady(
        update_id=update_id(device, task, number, base, update.digest),
        task=task,
        round=number,
        base_version=base,
        update=update,
        report=TrainingReport(
            samples=1,
            steps=1,
            loss_first=1.0,
            loss_last=0.5,
            seconds=1.0,
            peak_memory_bytes=1,
            downloaded_bytes=1,
            uploaded_bytes=size_bytes,
            encoding=encoding,
        ),
    )
