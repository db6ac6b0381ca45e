from __future__ import annotations

import errno
import mmap
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event

import msgspec
import numpy as np
import psutil
import pytest

import edge_sdk
from edge_sdk.errors import TrainingError, TrainingMemoryError
from edge_sdk.protocol.messages import Failure, Recipe
from edge_sdk.protocol.tensors import header_of, read_tensors
from edge_sdk.training import process as process_module
from edge_sdk.training.job import Failed, Finished, Progress, TrainingEvent, TrainingJob
from edge_sdk.training.memory import memory_status
from edge_sdk.training.process import TrainingProcess
from tests.support import logistic_graph

MIB = 1 << 20
LONG = Recipe(learning_rate=0.001, batch_size=1, epochs=1000, max_tokens=16)


def run(job: TrainingJob) -> list[TrainingEvent]:
    events = []
    process = TrainingProcess(job, events.append)
    assert process.wait(60)
    return events


def start(job: TrainingJob) -> tuple[TrainingProcess, queue.Queue[TrainingEvent]]:
    """A process that is in the middle of training, and the queue of its further events."""
    events = queue.Queue()
    process = TrainingProcess(job, events.put)
    assert isinstance(events.get(timeout=60), Progress)
    return process, events


def last(events: queue.Queue[TrainingEvent]) -> TrainingEvent:
    while not isinstance(event := events.get(timeout=10), Failed | Finished):
        pass
    return event


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOMEM, TrainingMemoryError), (errno.EAGAIN, TrainingError)])
def test_process_that_the_system_does_not_start_is_a_named_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[TrainingError]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, "no")

    job = logistic_graph.training_job(tmp_path)
    monkeypatch.setattr(subprocess, "Popen", refuse)
    with pytest.raises(TrainingError, match="the training process cannot be started: no") as raised:
        TrainingProcess(job, print)
    assert type(raised.value) is kind
    assert not list(tmp_path.glob("*.job.json"))


def test_process_trains_and_reports_every_step(tmp_path: Path) -> None:
    job = logistic_graph.training_job(tmp_path)
    *progress, finished = run(job)
    assert [event.step for event in progress] == list(range(1, 21))
    assert isinstance(finished, Finished)
    assert finished.result.loss_last == progress[-1].loss
    update = read_tensors(Path(job.update).read_bytes())
    assert {name: values.shape for name, values in update.items()} == {
        "classifier.weight": (2, 3),
        "classifier.bias": (2,),
    }
    assert any(values.any() for values in update.values())
    assert sorted(path.name for path in tmp_path.glob("update*")) == ["update.safetensors"]


def test_process_of_the_same_job_gives_the_same_bytes(tmp_path: Path) -> None:
    job = logistic_graph.training_job(tmp_path)
    run(job)
    first = Path(job.update).read_bytes()
    run(job)
    assert Path(job.update).read_bytes() == first


@pytest.mark.parametrize("limit_mib", [1, 50, 62])
def test_process_with_too_little_memory_ends_as_out_of_memory(tmp_path: Path, limit_mib: int) -> None:
    job = logistic_graph.training_job(tmp_path, memory_limit_bytes=limit_mib * MIB)
    assert isinstance(event := run(job)[-1], Failed)
    assert event.failure is Failure.OUT_OF_MEMORY, event
    assert not Path(job.update).exists()


@pytest.mark.long  # that a limit ends as out of memory shows in every run in tests/e2e
def test_process_whose_batch_needs_too_much_ends_as_out_of_memory(tmp_path: Path) -> None:
    """The control has the same batch and a limit that is large enough."""
    big = Recipe(learning_rate=0.001, batch_size=4096, epochs=1, max_tokens=8192)
    job = logistic_graph.training_job(tmp_path, recipe=big, memory_limit_bytes=200 * MIB)
    texts = [{"text": "good " * 2000, "label": "positive"}] * 2000
    Path(job.examples).write_bytes(msgspec.json.Encoder().encode_lines(texts))
    assert isinstance(failed := run(job)[-1], Failed)
    assert failed.failure is Failure.OUT_OF_MEMORY
    assert failed.peak_memory_bytes is not None
    assert failed.peak_memory_bytes < 210 * MIB
    assert isinstance(run(msgspec.structs.replace(job, memory_limit_bytes=2048 * MIB))[-1], Finished)


def test_process_whose_update_the_disk_refuses_says_storage_and_leaves_no_half(tmp_path: Path) -> None:
    job = logistic_graph.training_job(tmp_path)
    Path(job.update).mkdir()
    assert isinstance(event := run(job)[-1], Failed)
    assert event.failure is Failure.STORAGE
    assert "cannot be read or written" in event.detail
    assert not list(tmp_path.rglob("*.partial"))


def test_process_with_wrong_data_says_which(tmp_path: Path) -> None:
    job = logistic_graph.training_job(tmp_path, labels=("negative", "neutral"))
    assert isinstance(event := run(job)[-1], Failed)
    assert event.failure is Failure.EXAMPLES
    assert re.match(f"{re.escape(job.examples)}: example [0-9]+ has another label than the task's", event.detail)


@pytest.mark.parametrize(
    ("number", "failure"),
    [
        (signal.SIGKILL, Failure.OUT_OF_MEMORY),
        (signal.SIGSEGV, Failure.OUT_OF_MEMORY),
        (signal.SIGABRT, Failure.TRAINING),
    ],
)
def test_process_that_dies_is_a_failure(tmp_path: Path, number: int, failure: Failure) -> None:
    process, events = start(logistic_graph.training_job(tmp_path, recipe=LONG))
    os.kill(process.pid, number)
    event = last(events)
    assert (type(event), event.failure) == (Failed, failure)
    assert number.name in event.detail


def test_process_that_dies_of_a_signal_without_a_name_is_a_failure_with_its_number(tmp_path: Path) -> None:
    process, events = start(logistic_graph.training_job(tmp_path, recipe=LONG))
    os.kill(process.pid, signal.SIGRTMIN + 3)
    event = last(events)
    assert (type(event), event.failure) == (Failed, Failure.TRAINING)
    assert f"signal {signal.SIGRTMIN + 3}" in event.detail


def test_process_that_is_killed_is_out_of_memory_where_the_application_ignores_its_children(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        process, events = start(logistic_graph.training_job(tmp_path, recipe=LONG))
        os.kill(process.pid, signal.SIGKILL)
        assert last(events).failure is Failure.OUT_OF_MEMORY
    finally:
        signal.signal(signal.SIGCHLD, before)


@pytest.mark.parametrize("frozen", [False, True])
def test_process_stopped_ends_within_four_seconds_and_is_silent(tmp_path: Path, frozen: bool) -> None:
    process, events = start(logistic_graph.training_job(tmp_path, recipe=LONG))
    if frozen:
        os.kill(process.pid, signal.SIGSTOP)
    started_s = time.monotonic()
    process.stop()
    assert time.monotonic() - started_s < 4
    assert process.wait(5)
    assert all(isinstance(event, Progress) for event in events.queue)
    process.stop()


def test_process_of_which_a_library_writes_last_has_ended_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = Failed(Failure.STORAGE, "no space left")
    monkeypatch.setattr(process_module, "_START", f"print({msgspec.json.encode(failed).decode()!r}); print('bye')")
    assert run(logistic_graph.training_job(tmp_path)) == [failed]


def test_process_that_has_ended_leaves_no_job_file_once_it_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one's has the same name: who removed it later would take that one's."""
    waiting = Event()
    tail = process_module._tail
    monkeypatch.setattr(process_module, "_START", "")
    monkeypatch.setattr(process_module, "_tail", lambda file: waiting.wait(0.3) or tail(file))
    process = TrainingProcess(logistic_graph.training_job(tmp_path), print)
    process._process.wait(10)
    process.stop()
    assert not list(tmp_path.glob("*.job.json"))


def test_process_of_an_application_that_blocks_sigterm_leaves_a_checkpoint(tmp_path: Path) -> None:
    """As one does that waits for its signals on one thread; a blocked signal stays blocked in what it starts."""
    checkpoint = tmp_path / "checkpoint"
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        process, _ = start(logistic_graph.training_job(tmp_path, recipe=LONG, checkpoint=str(checkpoint)))
        process.stop()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    assert checkpoint.exists()


def test_process_imports_what_the_application_does_and_nothing_of_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that the application has put on its path, and one where somebody keeps a script of their own."""
    package, elsewhere = tmp_path / "vendored", tmp_path / "elsewhere"
    for folder in (package, elsewhere):
        folder.mkdir()
    shutil.copytree(Path(edge_sdk.__file__).parent, package / "edge_sdk")
    worker_file = package / "edge_sdk" / "training" / "worker.py"
    worker_file.write_text(worker_file.read_text().replace("_NICENESS = 10", "_NICENESS = 11"))
    (elsewhere / "random.py").write_text("raise SystemExit('not the one of Python')")
    monkeypatch.syspath_prepend(package)
    monkeypatch.chdir(elsewhere)
    process, events = start(logistic_graph.training_job(tmp_path, recipe=LONG))
    assert psutil.Process(process.pid).nice() == os.nice(0) + 11
    process.stop()
    assert events


def test_worker_ends_when_its_parent_is_gone(tmp_path: Path) -> None:
    job = logistic_graph.training_job(tmp_path, recipe=LONG)
    (tmp_path / "job.json").write_bytes(msgspec.json.encode(job))
    script = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-m', 'edge_sdk.training.worker', sys.argv[1]], stdout=sys.stderr)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)"
    )
    with (tmp_path / "lines").open("wb") as lines:
        command = [sys.executable, "-c", script, str(tmp_path / "job.json")]
        parent = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=lines)
        child = int(parent.stdout.readline())
        wait_until(lambda: b"progress" in (tmp_path / "lines").read_bytes())
        parent.kill()
        parent.wait()
        parent.stdout.close()
        wait_until(lambda: not is_running(child))


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("errors", "failure"),
    [
        (b"memory allocation of 1048576 bytes failed", Failure.OUT_OF_MEMORY),
        (b"terminate called after throwing an instance of 'std::bad_alloc'", Failure.OUT_OF_MEMORY),
        (b"libgcc_s.so.1 must be installed for unwinding to work", Failure.OUT_OF_MEMORY),
        (b"panicked at src/lib.rs: index out of bounds", Failure.TRAINING),
    ],
)
def test_process_that_aborts_is_out_of_memory_if_it_says_so(errors: bytes, failure: Failure) -> None:
    failed = process_module._death(-signal.SIGABRT, b"a warning\n" + errors + b"\n")
    assert failed.failure is failure
    assert "SIGABRT" in failed.detail
    assert errors.decode() in failed.detail


def test_process_that_dies_of_an_exception_says_which_without_its_words() -> None:
    failed = process_module._death(1, b'Traceback (most recent call last):\nKeyError: "a patient\'s name"\n')
    assert failed.detail == "the training process ended by exit status 1 KeyError"


def worker(job: TrainingJob, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    (tmp_path / "job.json").write_bytes(msgspec.json.encode(job))
    command = [sys.executable, "-X", "importtime", "-m", "edge_sdk.training.worker", str(tmp_path / "job.json")]
    environment = {**os.environ, **process_module._ENVIRONMENT}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_worker_never_imports_torch(tmp_path: Path) -> None:
    done = worker(logistic_graph.training_job(tmp_path), tmp_path)
    assert done.returncode == 0
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert {"numpy", "onnxruntime", "tokenizers"} <= imported
    assert not imported & {"torch", "transformers", "peft", "onnx", "coordinator", "psutil", "paho"}


def test_worker_out_of_memory_has_the_documented_exit_status(tmp_path: Path) -> None:
    """The weights alone, 400 MB of a sparse file, are more than the limit: numpy is refused, and says so."""
    job = logistic_graph.training_job(tmp_path, memory_limit_bytes=200 * MIB)
    header = header_of({"classifier.weight": (np.dtype("<f4"), (100_000_000,))})
    with Path(job.weights).open("wb") as file:
        file.write(header)
        file.truncate(len(header) + 400_000_000)
    done = worker(job, tmp_path)
    assert done.returncode == TrainingMemoryError.exit_code == 7
    assert msgspec.json.decode(done.stdout, type=TrainingEvent).failure is Failure.OUT_OF_MEMORY


def test_worker_peak_is_resident_memory_and_small(tmp_path: Path) -> None:
    finished = run(logistic_graph.training_job(tmp_path))[-1]
    assert 30 * MIB < finished.result.peak_memory_bytes < 110 * MIB


def test_memory_status_follows_an_allocation() -> None:
    before = memory_status()
    block = mmap.mmap(-1, 64 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # never from what malloc kept
    block.write(b"\x01" * 64 * MIB)
    after = memory_status()
    assert after.anonymous_bytes - before.anonymous_bytes >= 63 * MIB
    assert after.peak_bytes >= after.anonymous_bytes
    block.close()


def test_job_survives_its_own_encoding(tmp_path: Path) -> None:
    job = logistic_graph.training_job(tmp_path)
    assert msgspec.json.decode(msgspec.json.encode(job), type=TrainingJob) == job
