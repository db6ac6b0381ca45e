"""Peak resident memory of an agent that trains all of MiniLM, over a torch process that does the same.

An agent that trains is two processes, the agent and its training process; the figure counts both, each at its own peak
(VmHWM), so pages that they share count twice. Every process is a fresh one.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import msgspec
from transformers.utils.logging import disable_progress_bar

from coordinator.broker import EmbeddedBroker
from coordinator.delivery.keys import release_key
from coordinator.demo.fleet import FLEET, NAME, agent_arguments
from coordinator.models.torch_modules import torch_module
from edge_sdk.protocol.messages import Ready, decode_from_device
from edge_sdk.protocol.topics import Channel, Topic
from edge_sdk.training.job import Finished, Progress, TrainingEvent, TrainingJob
from edge_sdk.training.process import TrainingProcess
from edge_sdk.transport.base import Incoming
from edge_sdk.transport.mqtt import MqttTransport
from tests.benchmarks._fleet import NO_LIMIT_BYTES, DemoFleet, say
from tests.benchmarks._measure import Figure, show
from tests.benchmarks._torch_training import TorchRun

BAR = 0.6
STEPS = 8
_REPEATS = 3
_MIB = 1 << 20
_START_TIMEOUT_S = 60.0
_IDLE_S = 3.0


@dataclass(frozen=True, slots=True)
class Training:
    """One training process: its peak, the median time of a step after the first, its first and last loss."""

    peak_mib: float
    step_ms: float
    losses: tuple[float, float]


def run() -> Figure:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fleet = DemoFleet(folder, seed=0)
        job, model = _job(fleet), _save_model(fleet, folder / "model")
        resident_mib, agent_mib = _idle_agent(folder)
        ours, bare, torch = _trainings(job, model, folder / "job.json")
    _check_same_work(ours, torch)
    rows = [
        ("agent, idle", f"{resident_mib:.0f} MiB now, {agent_mib:.0f} MiB peak"),
        ("its training process", _shown(ours)),
        ("torch, transformers, peft", _shown(torch)),
        ("torch, transformers", _shown(bare)),
    ]
    show(f"MiniLM, all but the embeddings, {_load(job)}; medians of {_REPEATS} processes", rows)
    both = agent_mib + ours.peak_mib
    more = {
        "training_process_alone": round(ours.peak_mib / torch.peak_mib, 4),
        "without_peft": round(both / bare.peak_mib, 4),
        "step_time": round(ours.step_ms / torch.step_ms, 4),
    }
    return Figure("runtime_memory", both / torch.peak_mib, BAR, "agent and training process over torch and peft", more)


def _job(fleet: DemoFleet) -> TrainingJob:
    """The whole model on the examples of the device that has most; no nested pass, which torch does not do either."""
    device = max(fleet.devices, key=lambda device: device.samples)
    job = fleet.job(device, fleet.first, fleet.run.widths["full"], 1, limit_bytes=NO_LIMIT_BYTES)
    recipe = msgspec.structs.replace(job.recipe, max_steps=STEPS, calibrate_logits=False)
    return msgspec.structs.replace(job, recipe=recipe, nested=())


def _load(job: TrainingJob) -> str:
    return f"{STEPS} steps of {job.recipe.batch_size} x {job.recipe.max_tokens} tokens, {job.threads} thread"


def _save_model(fleet: DemoFleet, folder: Path) -> Path:
    """Version 0 as Hugging Face saves a model, so that both processes start from the same parameters."""
    disable_progress_bar()
    torch_module(fleet.run.foundation, parameters=fleet.first.parameters).save_pretrained(folder)
    return folder


def _trainings(job: TrainingJob, model: Path, job_file: Path) -> tuple[Training, Training, Training]:
    """Ours, torch without peft and torch with it; they take turns."""
    job_file.write_bytes(msgspec.json.encode(job))
    runs: list[tuple[Training, Training, Training]] = []
    for number in range(1, _REPEATS + 1):
        say(f"  training, {number} of {_REPEATS}")
        runs.append((_ours(job), _torch(job_file, model), _torch(job_file, model, "--peft")))
    ours, bare, with_peft = zip(*runs, strict=True)
    return _median(ours), _median(bare), _median(with_peft)


def _median(runs: Sequence[Training]) -> Training:
    peak_mib = statistics.median(run.peak_mib for run in runs)
    return Training(peak_mib, statistics.median(run.step_ms for run in runs), runs[0].losses)


def _ours(job: TrainingJob) -> Training:
    """The agent's own training process; a step is timed from one report to the next."""
    events: list[tuple[float, TrainingEvent]] = []
    TrainingProcess(job, lambda event: events.append((time.perf_counter(), event))).wait()
    last = events[-1][1]
    assert isinstance(last, Finished), last
    told_s = [at_s for at_s, event in events if isinstance(event, Progress)]
    step_ms = 1e3 * statistics.median(after - before for before, after in pairwise(told_s))
    return Training(last.result.peak_memory_bytes / _MIB, step_ms, (last.result.loss_first, last.result.loss_last))


def _torch(job_file: Path, model: Path, *options: str) -> Training:
    command = [sys.executable, "-m", "tests.benchmarks._torch_training", str(job_file), str(model), *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment).stdout
    made = msgspec.json.decode(output, type=TorchRun)
    step_ms = 1e3 * statistics.median(made.step_s[1:])
    return Training(made.peak_bytes / _MIB, step_ms, (made.losses[0], made.losses[-1]))


def _check_same_work(ours: Training, torch: Training) -> None:
    """The first loss says that model and batch are the same, the last that the optimizer is too."""
    differences = [abs(a - b) / b for a, b in zip(ours.losses, torch.losses, strict=True)]
    if max(differences) > 1e-2:
        raise RuntimeError(f"losses {ours.losses} are not torch's {torch.losses}: the two do different work")


def _idle_agent(folder: Path) -> tuple[float, float]:
    """MiB of an ``edge-agent run`` that waits for work: resident (VmRSS) and its peak so far (VmHWM)."""
    release_key(folder / "coordinator")
    with EmbeddedBroker(folder / "broker") as broker:
        listener = MqttTransport(broker.address, "listener", (str(Topic(NAME, FLEET[0].name, Channel.UP)),))
        listener.connect()
        command = [sys.executable, "-m", "edge_sdk.cli", *agent_arguments(FLEET[0], str(broker.address), folder)]
        agent = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            _wait_until_ready(listener)
            time.sleep(_IDLE_S)
            return _status_mib(agent.pid, "VmRSS"), _status_mib(agent.pid, "VmHWM")
        finally:
            agent.terminate()
            agent.wait()
            listener.close()


def _wait_until_ready(listener: MqttTransport) -> None:
    """Until the agent asks for work."""
    give_up_s = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < give_up_s:
        delivery = listener.receive(1.0)
        if isinstance(delivery, Incoming) and isinstance(decode_from_device(delivery.payload), Ready):
            return
    raise RuntimeError(f"the agent did not ask for work within {_START_TIMEOUT_S:.0f} s")


def _status_mib(process_id: int, field: str) -> float:
    lines = Path(f"/proc/{process_id}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


def _shown(training: Training) -> str:
    first, last = training.losses
    return f"{training.peak_mib:.0f} MiB, {training.step_ms:.0f} ms a step, loss {first:.4f} to {last:.4f}"
