from __future__ import annotations

import errno
import queue
import time
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from edge_sdk.protocol.messages import Recipe
from edge_sdk.protocol.tensors import read_tensors
from edge_sdk.training import files
from edge_sdk.training.checkpoint import Checkpoint, Trained
from edge_sdk.training.job import Finished, Progress, TrainingEvent, TrainingJob
from edge_sdk.training.process import TrainingProcess
from tests.support import logistic_graph

STATE = {"weights": np.arange(5, dtype=np.float32), "steps": np.array([3], dtype=np.int64)}
TRAINED = Trained(3, 1.5, 0.25, 12.5)


def job_in(folder: Path, **changes: object) -> TrainingJob:
    return logistic_graph.training_job(folder, checkpoint=str(folder / "checkpoint"), **changes)


def test_checkpoint_gives_back_what_was_saved(tmp_path: Path) -> None:
    job = job_in(tmp_path)
    Checkpoint(job).save(STATE, TRAINED)
    found = Checkpoint(job).load()
    assert found is not None
    trained, state = found
    assert trained == TRAINED
    for (name, values), (expected_name, expected) in zip(state, STATE.items(), strict=True):
        assert name == expected_name
        np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize(
    "changes",
    [{"seed": 4}, {"weights": "other"}, {"recipe": Recipe(learning_rate=1, batch_size=8, epochs=4, max_tokens=16)}],
)
def test_checkpoint_of_another_job_is_not_taken(tmp_path: Path, changes: dict[str, object]) -> None:
    job = job_in(tmp_path)
    Checkpoint(job).save(STATE, TRAINED)
    assert Checkpoint(msgspec.structs.replace(job, **changes)).load() is None


def test_checkpoint_of_other_examples_is_not_taken(tmp_path: Path) -> None:
    job = job_in(tmp_path)
    Checkpoint(job).save(STATE, TRAINED)
    with Path(job.examples).open("a") as file:
        file.write('{"text": "a new one", "label": "positive"}\n')
    assert Checkpoint(job).load() is None


def test_checkpoint_is_the_same_jobs_on_other_threads_and_memory(tmp_path: Path) -> None:
    job = job_in(tmp_path)
    Checkpoint(job).save(STATE, TRAINED)
    assert Checkpoint(msgspec.structs.replace(job, threads=7, memory_limit_bytes=99)).load() is not None


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_checkpoint_cut_short_is_not_taken(tmp_path: Path, kept: int) -> None:
    job = job_in(tmp_path)
    Checkpoint(job).save(STATE, TRAINED)
    path = Path(job.checkpoint)
    path.write_bytes(path.read_bytes()[:kept])
    assert Checkpoint(job).load() is None


def test_checkpoint_with_a_changed_bit_is_not_taken(tmp_path: Path) -> None:
    """Wherever it lies: in a weight or a moment it would be trained on, and sent."""
    job = job_in(tmp_path)
    Checkpoint(job).save(STATE, TRAINED)
    path = Path(job.checkpoint)
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert Checkpoint(job).load() is None, place
    path.write_bytes(whole)
    assert Checkpoint(job).load() is not None


def test_checkpoint_that_the_disk_cannot_read_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bad sector: otherwise the device would never train again, as no checkpoint would be written in its place."""
    job = job_in(tmp_path)
    Checkpoint(job).save(STATE, TRAINED)

    def refuse(*_: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(files, "_checksum", refuse)
    assert Checkpoint(job).load() is None


def test_checkpoint_is_due_after_its_interval_or_in_a_hurry(tmp_path: Path) -> None:
    job = job_in(tmp_path, checkpoint_interval_s=0.05)
    checkpoint = Checkpoint(job)
    assert not checkpoint.is_due(step_s=0.0)
    time.sleep(0.06)
    assert checkpoint.is_due(step_s=0.0)
    checkpoint.save(STATE, TRAINED)
    assert not checkpoint.is_due(step_s=0.0)
    checkpoint.hurry()
    assert checkpoint.is_due(step_s=0.0)


@pytest.mark.parametrize("step_s", [0.1, 15.0, 20.0, 22.0, 30.0, 44.0, 70.0])
def test_last_checkpoint_is_a_minute_old_at_most_however_long_a_step_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step_s: float
) -> None:
    """Of a step that takes longer itself, nothing but the step is lost."""
    now_s, saved_s, oldest_s = 0.0, 0.0, 0.0
    monkeypatch.setattr("edge_sdk.training.checkpoint.time", SimpleNamespace(monotonic=lambda: now_s))
    checkpoint = Checkpoint(job_in(tmp_path))
    while now_s < 600:
        now_s += step_s
        oldest_s = max(oldest_s, now_s - saved_s)
        if checkpoint.is_due(step_s):
            checkpoint.save(STATE, TRAINED)
            saved_s = now_s
    assert oldest_s <= max(60.0, step_s)
    assert oldest_s > 20, "it is not written more often than is needed"


def test_job_without_a_file_has_no_checkpoint(tmp_path: Path) -> None:
    checkpoint = Checkpoint(logistic_graph.training_job(tmp_path))
    checkpoint.hurry()
    assert not checkpoint.is_due(step_s=0.0)
    assert checkpoint.load() is None


def test_disk_that_refuses_a_checkpoint_costs_no_more_than_that(tmp_path: Path) -> None:
    job = logistic_graph.training_job(tmp_path, checkpoint=str(tmp_path / "none" / "checkpoint"))
    checkpoint = Checkpoint(job)
    checkpoint.save(STATE, TRAINED)
    assert checkpoint.load() is None
    assert not checkpoint.is_due(step_s=0.0)


def test_checkpoint_of_another_job_gives_its_room_back(tmp_path: Path) -> None:
    job = job_in(tmp_path)
    Checkpoint(job).save(STATE, TRAINED)
    Checkpoint(msgspec.structs.replace(job, seed=99)).load()
    assert not Path(job.checkpoint).exists()


def test_process_that_was_stopped_goes_on_where_it_was(tmp_path: Path) -> None:
    recipe = Recipe(learning_rate=0.05, batch_size=8, epochs=300, max_tokens=16)
    job = job_in(tmp_path, recipe=recipe)
    events: queue.Queue[TrainingEvent] = queue.Queue()
    process = TrainingProcess(job, events.put)
    while not (isinstance(event := events.get(timeout=60), Progress) and event.step >= 50):
        pass
    process.stop()
    assert not Path(job.update).exists()
    again: list[TrainingEvent] = []
    assert TrainingProcess(job, again.append).wait(60)
    assert isinstance(again[0], Progress)
    assert again[0].step > 50
    finished = again[-1]
    assert isinstance(finished, Finished)
    assert finished.result.steps == 1_500

    whole: list[TrainingEvent] = []
    alone = msgspec.structs.replace(job, update=str(tmp_path / "whole"), checkpoint="")
    assert TrainingProcess(alone, whole.append).wait(60)
    ours, reference = (read_tensors(Path(name).read_bytes()) for name in (job.update, alone.update))
    for name, delta in reference.items():
        np.testing.assert_array_equal(ours[name], delta)
