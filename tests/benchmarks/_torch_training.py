"""``python -m tests.benchmarks._torch_training JOB.json MODEL [--peft]``: a training job, with torch and transformers.

The same parameters, batches, loss and optimizer as the agent's own process for that job, no nested prefix, no limit.
What is trained, and its first values, are the job's; MODEL is the folder of the rest. Dropout is off, as in the agent's
graph. With ``--peft`` the adapters of the job, where it has some, are peft's; where it has none, peft is only imported.
"""

from __future__ import annotations

import mmap
import os
import sys
import time
from itertools import chain, islice
from pathlib import Path

import msgspec
import torch
from torch import nn
from torch.nn import functional
from transformers import AutoModelForSequenceClassification
from transformers.utils.logging import disable_progress_bar

from edge_sdk.data.batches import Batch, EncodedExamples
from edge_sdk.protocol.tensors import read_tensors
from edge_sdk.training.job import TrainingJob
from edge_sdk.training.memory import memory_status
from edge_sdk.training.runtime import examples_of


class TorchRun(msgspec.Struct):
    """What one process measured: bytes, seconds of each step, and the losses."""

    peak_bytes: int
    step_s: list[float]
    losses: list[float]


def main(job_file: str, model: str, *, with_peft: bool) -> TorchRun:
    job = msgspec.json.decode(Path(job_file).read_bytes(), type=TrainingJob)
    os.nice(10)  # as the agent's process
    torch.set_num_threads(job.threads)
    examples = examples_of(job)
    trainer = _Trainer(job, model, with_peft=with_peft)
    step_s, losses = [], []
    for batch in _batches(job, examples):
        started_s = time.perf_counter()
        losses.append(trainer.step(batch))
        step_s.append(time.perf_counter() - started_s)
    return TorchRun(memory_status().peak_bytes, step_s, losses)


class _Trainer:
    def __init__(self, job: TrainingJob, model: str, *, with_peft: bool) -> None:
        self._model = AutoModelForSequenceClassification.from_pretrained(model, local_files_only=True).eval()
        if with_peft:
            self._model = _with_adapters(self._model, job)
        trained = _trained(self._model, job)
        recipe = job.recipe
        self._optimizer = torch.optim.AdamW(trained, recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True)

    def step(self, batch: Batch) -> float:
        inputs = {name: torch.from_numpy(values) for name, values in batch.inputs.items()}
        loss = functional.cross_entropy(self._model(**inputs).logits, torch.from_numpy(batch.targets))
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad()  # at once, so that gradients are not held through the next forward pass
        return float(loss.detach())


def _with_adapters(model: nn.Module, job: TrainingJob) -> nn.Module:
    """peft is imported in either case: a device that trains adapters has it."""
    from peft import get_peft_model

    from edge_sdk.modules.adapters import adapter_config

    adapters = job.architecture.adapters
    if adapters is None:
        return model
    return get_peft_model(model, adapter_config(model, job.architecture, adapters, adapters.rank)).eval()


def _trained(model: nn.Module, job: TrainingJob) -> list[nn.Parameter]:
    """What the job trains, with the job's values; all else is frozen."""
    with Path(job.weights).open("rb") as file:
        values = read_tensors(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))
    trained: dict[str, nn.Parameter] = {}
    for full_name, parameter in model.named_parameters():
        name = full_name.removeprefix("base_model.model.").replace(".base_layer.", ".").replace(".default.", ".")
        parameter.requires_grad_(name in values)
        if name in values:
            parameter.data.copy_(torch.from_numpy(values[name].copy()))
            trained[name] = parameter
    if trained.keys() != values.keys():
        raise RuntimeError(f"torch's model lacks {sorted(values.keys() - trained.keys())[:3]}")
    return list(trained.values())


def _batches(job: TrainingJob, examples: EncodedExamples) -> list[Batch]:
    epochs = (examples.batches(job.recipe.batch_size, job.seed, epoch) for epoch in range(job.recipe.epochs))
    return list(islice(chain.from_iterable(epochs), job.recipe.max_steps))


if __name__ == "__main__":
    disable_progress_bar()
    print(msgspec.json.encode(main(*sys.argv[1:3], with_peft="--peft" in sys.argv)).decode())
