"""``python -m tests.benchmarks._cost_prediction JOB.json``: a process that predicts; its peak in bytes.

On onnxruntime it is the device's own engine with a released model, on torch a module made as for training.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from edge_sdk.data import read_examples
from edge_sdk.elastic.submodel import Architecture, Submodel
from edge_sdk.training.memory import memory_status


class PredictionJob(msgspec.Struct, frozen=True, kw_only=True):
    """What to predict with what; all but the last four are paths, ``config`` and ``weights`` for torch."""

    examples: str
    model: str = ""
    config: str = ""
    weights: str = ""
    tokenizer: str = ""
    labels: tuple[str, ...]
    max_tokens: int
    architecture: Architecture
    submodel: Submodel


def main(job: PredictionJob) -> int:
    """Predict every example by itself; the peak of this process in bytes."""
    tokenizer = Path(job.tokenizer).read_bytes() if job.tokenizer else b""
    if job.model:
        from edge_sdk.inference.engine import Engine

        Engine(Path(job.model), tokenizer, job.labels, job.max_tokens).measure(read_examples(Path(job.examples)))
    else:
        _predict_on_torch(job, tokenizer)
    return memory_status().peak_bytes


def _predict_on_torch(job: PredictionJob, tokenizer: bytes) -> None:
    import numpy as np
    import torch

    from edge_sdk.data.batches import encode_examples
    from edge_sdk.modules.building import submodel_module
    from edge_sdk.protocol.tensors import read_tensors

    torch.set_num_threads(1)
    examples = read_examples(Path(job.examples))
    encoded = encode_examples(examples, job.labels, tokenizer_json=tokenizer, max_tokens=job.max_tokens)
    parameters = {name: np.array(values) for name, values in read_tensors(Path(job.weights).read_bytes()).items()}
    module = submodel_module(Path(job.config).read_bytes(), job.architecture, job.submodel, parameters)
    with torch.inference_mode():
        for index in range(len(encoded)):
            inputs = encoded.batch_of(np.array([index])).inputs
            module(**{name: torch.from_numpy(values) for name, values in inputs.items()})


if __name__ == "__main__":
    print(main(msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=PredictionJob)))
