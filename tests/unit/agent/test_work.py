"""What becomes of an offer on a device: where the disk does not do as it should, and of what an update loses."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from edge_sdk.agent.decisions import Phase
from edge_sdk.agent.supervisor import AgentStatus
from edge_sdk.agent.work import Updates, job_of
from edge_sdk.config import AgentConfig
from edge_sdk.elastic.submodel import Architecture, Submodel, TrainablePart
from edge_sdk.errors import DiskFullError, StorageError
from edge_sdk.protocol.messages import (
    BlobEntry,
    Declined,
    Encoding,
    EncodingKind,
    Failure,
    Offer,
    Optimizer,
    Part,
    Recipe,
    Snapshot,
    UpdateReady,
)
from edge_sdk.security.trust import Trust
from edge_sdk.storage.cache import BlobCache
from edge_sdk.storage.outbox import Outbox
from edge_sdk.training import process
from edge_sdk.training.checkpoint import Checkpoint, Trained
from edge_sdk.training.job import TrainingJob, TrainingResult
from edge_sdk.training.onnx_runtime import OnnxRuntime
from edge_sdk.training.runtime import examples_of, take_step
from edge_sdk.transport.blob_folder import is_sound
from tests.support import logistic_graph
from tests.support.lone_device import LoneDevice

OFFER = Offer(
    task="t",
    round=1,
    base_version="d" * 64,
    architecture=Architecture("bert", 1, 1, 4, 4, 4, 10, 16, 2),
    submodel=Submodel((0,), (1,), (4,)),
    part=TrainablePart.NO_EMBEDDINGS,
    labels=("x", "y"),
    recipe=Recipe(learning_rate=1e-4, batch_size=4, epochs=1, max_tokens=16),
    deadline_s=60.0,
    predicted_memory_bytes=1,
    manifest=(),
)
RESULT = TrainingResult(samples=1, steps=1, loss_first=1.0, loss_last=0.5, seconds=1.0, peak_memory_bytes=1)


@pytest.fixture
def updates(tmp_path: Path) -> Iterator[Updates]:
    outbox = Outbox(tmp_path / "outbox.sqlite", first_pause_s=1, max_pause_s=1)
    yield Updates(
        AgentConfig(device="d", broker="mqtt://127.0.0.1", state_dir=tmp_path),
        outbox,
        BlobCache(tmp_path / "blobs", 1 << 20),
    )
    outbox.close()


def test_update_is_stored_though_its_checkpoint_cannot_be_removed(updates: Updates, tmp_path: Path) -> None:
    (tmp_path / "update.safetensors").write_bytes(b"an update")
    (tmp_path / "checkpoint.safetensors" / "in the way").mkdir(parents=True)
    message = updates.store(OFFER, RESULT, downloaded_bytes=0, battery_share=None)
    assert updates.pending() == [message]
    assert BlobCache(tmp_path / "blobs", 1 << 20).has(message.update.digest)


def test_update_that_is_gone_is_an_error_of_the_disk(updates: Updates) -> None:
    result = TrainingResult(samples=1, steps=1, loss_first=1.0, loss_last=0.5, seconds=1.0, peak_memory_bytes=1)
    with pytest.raises(StorageError, match=r"update\.safetensors cannot be read or written"):
        updates.store(OFFER, result, downloaded_bytes=0, battery_share=None)


@pytest.mark.parametrize(("optimizer", "copies"), [(Optimizer.ADAMW, 5), (Optimizer.MOMENTUM, 3), (Optimizer.SGD, 1)])
def test_room_is_for_two_checkpoints_less_the_update_and_what_is_there(
    updates: Updates, tmp_path: Path, optimizer: Optimizer, copies: int
) -> None:
    offer = msgspec.structs.replace(
        OFFER,
        recipe=msgspec.structs.replace(OFFER.recipe, optimizer=optimizer),
        manifest=tuple(BlobEntry(part=part, digest="a" * 64, size_bytes=1000) for part in (Part.WEIGHTS, Part.FROZEN)),
    )
    assert updates.room_for_checkpoints(offer) == copies * 1000
    (tmp_path / "checkpoint.safetensors").write_bytes(bytes(400))
    assert updates.room_for_checkpoints(offer) == copies * 1000 - 400
    (tmp_path / "checkpoint.safetensors").write_bytes(bytes(9000))
    assert updates.room_for_checkpoints(offer) == 0


@pytest.mark.parametrize("optimizer", Optimizer)
def test_checkpoint_is_as_large_as_its_optimizer_says(tmp_path: Path, optimizer: Optimizer) -> None:
    """But for its table, which is a few hundred bytes whatever the model."""
    recipe = Recipe(learning_rate=0.01, batch_size=8, epochs=1, max_tokens=16, optimizer=optimizer)
    job = logistic_graph.training_job(tmp_path, recipe=recipe, checkpoint=str(tmp_path / "checkpoint"))
    runtime = OnnxRuntime(job, logistic_graph.parameters(1)["classifier.bias"] * 0)
    take_step(runtime, next(examples_of(job).batches(8, 0, 0)), job)
    Checkpoint(job).save(runtime.state(), Trained(steps=1))
    arrays = [values for name, values in runtime.state().items() if name != "steps"]
    weights = sum(logistic_graph.parameters(1)[name].nbytes for name in ("classifier.weight", "classifier.bias"))
    assert sum(values.nbytes for values in arrays) == weights * (1 + optimizer.moments)
    assert (tmp_path / "checkpoint").stat().st_size < weights * (1 + optimizer.moments) + 1000


@pytest.mark.parametrize("lacking_bytes", [0, 1])
def test_offer_whose_checkpoints_do_not_fit_on_the_disk_is_declined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacking_bytes: int
) -> None:
    texts = logistic_graph.examples(20, seed=1)
    with LoneDevice(tmp_path, list(zip(texts.texts, texts.labels, strict=True))) as device:
        sizes = {entry.part: entry.size_bytes for entry in device.offer.manifest}
        need_bytes = sum(sizes.values()) + 6 * sizes[Part.WEIGHTS]
        free_bytes = device.supervisor._config.policy.min_disk_free_bytes + need_bytes - lacking_bytes
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free_bytes))
        device.run_until(lambda: device.heard(Declined) or device.supervisor.status.phase is Phase.TRAINING)
    if lacking_bytes:
        declined = device.heard(Declined)[0]
        assert isinstance(declined, Declined)
        assert declined.failure is Failure.STORAGE
        assert "for checkpoints) are needed with 256 left free" in declined.detail
    else:
        assert not device.heard(Declined)


LOSSY = msgspec.structs.replace(
    OFFER,
    encoding=Encoding(kind=EncodingKind.INT8),
    manifest=tuple(BlobEntry(part=part, digest="b" * 64, size_bytes=1000) for part in (Part.WEIGHTS, Part.FROZEN)),
)
SNAPSHOT = Snapshot(
    memory_total_bytes=1, memory_available_bytes=1, training_memory_bytes=1, inference_memory_bytes=1, threads=1
)


def job(folder: Path, device: str = "d", **changes: object) -> TrainingJob:
    config, cache = (
        AgentConfig(device=device, broker="mqtt://127.0.0.1", state_dir=folder),
        BlobCache(folder / "blobs", 1 << 20),
    )
    return job_of(msgspec.structs.replace(LOSSY, **changes), cache, SNAPSHOT, config, folder)


def test_what_an_update_loses_is_given_to_the_job_of_the_next_round_alone(updates: Updates, tmp_path: Path) -> None:
    first = job(tmp_path)
    for path in (first.update, first.new_residual):
        Path(path).write_bytes(b"of round 1")
    updates.store(LOSSY, RESULT, downloaded_bytes=0, battery_share=None)
    assert not Path(first.new_residual).exists()
    second, other, again = job(tmp_path, round=2), job(tmp_path, round=2, task="other"), job(tmp_path)
    assert Path(second.residual).read_bytes() == b"of round 1"
    assert other.residual == again.residual == first.residual == ""
    assert again.rounding_seed == first.rounding_seed != second.rounding_seed


def test_two_devices_round_differently(tmp_path: Path) -> None:
    assert job(tmp_path, "d").rounding_seed != job(tmp_path, "e").rounding_seed


@pytest.mark.parametrize(("optimizer", "copies"), [(Optimizer.ADAMW, 5), (Optimizer.SGD, 2)])
def test_room_is_for_what_a_lossy_update_loses_beside_the_last_checkpoint(
    updates: Updates, optimizer: Optimizer, copies: int
) -> None:
    recipe = msgspec.structs.replace(OFFER.recipe, optimizer=optimizer)
    assert updates.room_for_checkpoints(msgspec.structs.replace(LOSSY, recipe=recipe)) == copies * 1000


@pytest.mark.parametrize("part", [Part.WEIGHTS, Part.FROZEN, Part.TRAINING_GRAPH])
def test_blob_that_was_damaged_in_the_cache_is_fetched_again_and_never_trained_on(tmp_path: Path, part: Part) -> None:
    texts = logistic_graph.examples(20, seed=1)
    device = LoneDevice(tmp_path, list(zip(texts.texts, texts.labels, strict=True)))
    entry = next(entry for entry in device.offer.manifest if entry.part is part)
    cached = device.state_dir / "blobs" / entry.digest
    data = bytearray(device.goods.blobs.path_of(entry.digest).read_bytes())
    data[-1] ^= 1
    cached.write_bytes(data)
    with device:
        device.run_until(lambda: device.heard(UpdateReady))
    (declined,) = device.heard(Declined)
    assert isinstance(declined, Declined)
    assert (declined.failure, entry.digest in declined.detail) == (Failure.STORAGE, True)
    assert is_sound(cached)


def test_agent_whose_full_disk_keeps_a_trial_open_goes_on_and_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise DiskFullError("no space left for trust: free some")

    statuses: list[AgentStatus] = []
    monkeypatch.setattr(Trust, "ran", refuse)
    with LoneDevice(tmp_path, [], releases_first=True) as device:
        device.supervisor._on_tick = statuses.append
        device.run_until(lambda: "no space left for trust" in caplog.text)
        statuses.clear()
        device.run_until(lambda: len(statuses) > 2, patience_s=10)
    assert caplog.text.count("no space left for trust") == 1


LINGERS = """
import os, pathlib, sys, time
first = pathlib.Path(sys.argv[1]).with_name("first")
if first.exists():
    print('{"type": "failed", "failure": "training", "detail": "%s"}' % os.path.exists("/proc/" + first.read_text()))
else:
    first.write_text(str(os.getpid()))
    print('{"type": "failed", "failure": "out-of-memory", "detail": ""}', flush=True)
    time.sleep(60)
"""


def test_training_begins_once_the_process_that_failed_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one takes long to give back the memory that it has too little of, and both use the same job file."""
    monkeypatch.setattr(process, "_START", LINGERS)
    texts = logistic_graph.examples(20, seed=1)
    with LoneDevice(tmp_path, list(zip(texts.texts, texts.labels, strict=True))) as device:
        device.run_until(lambda: len(device.heard(Declined)) == 2)
    said = [(found.failure, found.detail) for found in device.heard(Declined) if isinstance(found, Declined)]
    assert said == [(Failure.OUT_OF_MEMORY, ""), (Failure.TRAINING, "False")]


def test_training_that_fails_leaves_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would take three times the room of the weights, and its round does not offer the same again."""
    monkeypatch.setattr(process, "_START", """print('{"type": "failed", "failure": "training", "detail": ""}')""")
    texts = logistic_graph.examples(20, seed=1)
    with LoneDevice(tmp_path, list(zip(texts.texts, texts.labels, strict=True))) as device:
        checkpoint = device.state_dir / "checkpoint.safetensors"
        checkpoint.write_bytes(b"of its last minute")
        device.run_until(lambda: device.heard(Declined))
        assert not checkpoint.exists()


LEFT = [f"{name}.safetensors{end}" for name in ("checkpoint", "update", "residual") for end in ("", ".partial")]


def test_start_leaves_of_a_killed_training_process_only_the_checkpoint(updates: Updates, tmp_path: Path) -> None:
    """Half of another one would take its room, and not be counted: on a small disk no offer would ever fit again."""
    for name in LEFT:
        (tmp_path / name).write_bytes(b"half")
    Updates(updates._config, updates._outbox, updates._cache)
    assert [name for name in LEFT if (tmp_path / name).exists()] == ["checkpoint.safetensors"]


def test_checkpoint_is_forgotten_with_all_that_training_left(updates: Updates, tmp_path: Path) -> None:
    for name in LEFT:
        (tmp_path / name).write_bytes(b"half")
    updates.forget_checkpoint()
    assert not list(tmp_path.glob("*.safetensors*"))


LEAVES_HALF = """
import pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1]).parent
first, half = folder / "first", folder / "checkpoint.safetensors.partial"
def write(*_):
    half.touch()
    sys.exit()
if first.exists():
    print('{"type": "failed", "failure": "training", "detail": "%s"}' % half.exists())
else:
    first.touch()
    signal.signal(signal.SIGTERM, write)
    print('{"type": "failed", "failure": "out-of-memory", "detail": ""}', flush=True)
    time.sleep(60)
"""


def test_what_a_process_that_is_stopped_was_writing_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_START", LEAVES_HALF)
    texts = logistic_graph.examples(20, seed=1)
    with LoneDevice(tmp_path, list(zip(texts.texts, texts.labels, strict=True))) as device:
        device.run_until(lambda: len(device.heard(Declined)) == 2)
    assert [found.detail for found in device.heard(Declined) if isinstance(found, Declined)] == ["", "False"]
