"""``python -m tests.benchmarks._torch_training JOB.json MODEL [--peft]``: a training job, with torch and transformers.

The same parameters, batches, loss and optimizer as the agent's own process for that job, no nested prefix, no limit.
Dropout is off, as in the agent's graph. ``--peft`` also imports peft, which a device that trains adapters needs; for
these parameters nothing of it is called.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import msgspec
import torch
from torch.nn import functional
from transformers import AutoModelForSequenceClassification
from transformers.utils.logging import disable_progress_bar

from edge_sdk.data.batches import Batch, EncodedExamples
from edge_sdk.training.job import TrainingJob
from edge_sdk.training.memory import memory_status
from edge_sdk.training.runtime import examples_of


class TorchRun(msgspec.Struct):
    """What one process measured: bytes, seconds of each step, and the losses."""

    peak_bytes: int
    step_s: list[float]
    losses: list[float]


def main(job_file: str, model: str) -> TorchRun:
    job = msgspec.json.decode(Path(job_file).read_bytes(), type=TrainingJob)
    os.nice(10)  # as the agent's process
    torch.set_num_threads(job.threads)
    examples = examples_of(job)
    trainer = _Trainer(job, model)
    step_s, losses = [], []
    for batch in _batches(job, examples):
        started_s = time.perf_counter()
        losses.append(trainer.step(batch))
        step_s.append(time.perf_counter() - started_s)
    return TorchRun(memory_status().peak_bytes, step_s, losses)


class _Trainer:
    def __init__(self, job: TrainingJob, model: str) -> None:
        self._model = AutoModelForSequenceClassification.from_pretrained(model, local_files_only=True).eval()
        self._model.base_model.embeddings.requires_grad_(False)
        trained = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        recipe = job.recipe
        self._optimizer = torch.optim.AdamW(trained, recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True)

    def step(self, batch: Batch) -> float:
        inputs = {name: torch.from_numpy(values) for name, values in batch.inputs.items()}
        loss = functional.cross_entropy(self._model(**inputs).logits, torch.from_numpy(batch.targets))
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad()  # at once, so that gradients are not held through the next forward pass
        return float(loss.detach())


def _batches(job: TrainingJob, examples: EncodedExamples) -> list[Batch]:
    return list(examples.batches(job.recipe.batch_size, job.seed, 0))[: job.recipe.max_steps]


if __name__ == "__main__":
    if "--peft" in sys.argv:
        import peft  # noqa: F401
    disable_progress_bar()
    print(msgspec.json.encode(main(*sys.argv[1:3])).decode())
