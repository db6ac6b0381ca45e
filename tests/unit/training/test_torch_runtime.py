from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from coordinator.models.foundation import load_foundation
from edge_sdk.elastic.families import is_adapter
from edge_sdk.elastic.runtimes import Runtime
from edge_sdk.elastic.slicing import extract, slices_of
from edge_sdk.elastic.submodel import AdapterMethod, Adapters, Submodel, TrainablePart
from edge_sdk.errors import ConfigurationError, ModelFormatError, TensorTableError, TrainingError
from edge_sdk.protocol.messages import Failure, Recipe
from edge_sdk.protocol.tensors import read_tensors, write_tensors
from edge_sdk.training import torch_runtime
from edge_sdk.training.job import Failed, Finished, TrainingEvent, TrainingJob
from edge_sdk.training.process import TrainingProcess
from edge_sdk.training.runtime import examples_of, take_step, train
from edge_sdk.training.torch_runtime import TorchRuntime, _recomputed
from tests.support import logistic_graph
from tests.support.tiny_models import LABELS, WORDS, save_tiny_model

NO_OFFSET = np.zeros(3, dtype=np.float32)


def torch_job(
    folder: Path, part: TrainablePart = TrainablePart.NO_EMBEDDINGS, adapters: Adapters | None = None, **changes: object
) -> TrainingJob:
    """Two layers of a tiny BERT, whose texts are labelled by their first word."""
    tiny = load_foundation(save_tiny_model(folder / "model", "bert"), LABELS, seed=0, adapters=adapters)
    submodel = Submodel((0, 2), (3, 2), (40, 25), min(3, tiny.architecture.adapter_rank))
    shapes = {name: values.shape for name, values in tiny.parameters.items()}
    parameters = extract(tiny.parameters, slices_of(submodel, tiny.architecture, tiny.family, shapes))
    job = logistic_graph.training_job(folder, architecture=tiny.architecture, submodel=submodel, labels=LABELS)
    for path, is_trained in ((job.weights, True), (job.frozen, False)):
        with Path(path).open("wb") as file:
            chosen = {name for name in parameters if tiny.family.is_trainable(name, part) is is_trained}
            write_tensors(file, {name: parameters[name] for name in parameters if name in chosen})
    (folder / "config.json").write_bytes(tiny.config_json)
    Path(job.tokenizer).write_bytes(tiny.tokenizer_json)
    texts = [{"text": f"{WORDS[row % 6]} {WORDS[row % 5]}", "label": LABELS[row % 3]} for row in range(30)]
    Path(job.examples).write_bytes(msgspec.json.Encoder().encode_lines(texts))
    recipe = Recipe(learning_rate=0.01, batch_size=8, epochs=8, max_tokens=16)
    torchs = {"runtime": Runtime.TORCH, "graph": "", "config": str(folder / "config.json"), "recipe": recipe}
    return msgspec.structs.replace(job, memory_limit_bytes=4 << 30, **{**torchs, **changes})


def losses_of(job: TrainingJob) -> list[float]:
    losses: list[float] = []
    train(TorchRuntime(job, NO_OFFSET), examples_of(job), job, lambda progress: losses.append(progress.loss))
    return losses


def test_torch_runtime_that_recomputes_layers_trains_the_same(tmp_path: Path) -> None:
    job = torch_job(tmp_path)
    nested = (Submodel((0, 2), (1, 1), (20, 10)),)
    plain, saving = (
        losses_of(msgspec.structs.replace(job, nested=nested, gradient_checkpointing=on)) for on in (False, True)
    )
    np.testing.assert_allclose(saving, plain, rtol=1e-5)


def test_torch_runtime_with_recomputed_layers_keeps_fewer_activations(tmp_path: Path) -> None:
    job = torch_job(tmp_path)
    batch = next(examples_of(job).batches(8, 0, 0))
    kept = []
    for on in (False, True):
        runtime = TorchRuntime(msgspec.structs.replace(job, gradient_checkpointing=on), NO_OFFSET)
        sizes: list[int] = []

        def note(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            runtime.accumulate(batch, 1.0)
        kept.append(sum(sizes))
    assert kept[1] < 0.7 * kept[0]


def test_torch_runtime_in_mixed_precision_trains_nearly_the_same(tmp_path: Path) -> None:
    job = torch_job(tmp_path)
    plain, mixed = (losses_of(msgspec.structs.replace(job, mixed_precision=on)) for on in (False, True))
    assert plain != mixed
    np.testing.assert_allclose(mixed[:8], plain[:8], rtol=0.01)


def test_torch_runtime_goes_on_with_the_scale_of_its_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU without bfloat16, whose first scale is too large: it is halved until no gradient overflows."""
    monkeypatch.setattr(torch_runtime, "_precision_on", lambda _: torch.float16)
    job = torch_job(tmp_path, mixed_precision=True)
    batches = list(examples_of(job).batches(8, 0, 0))
    runtime = TorchRuntime(job, NO_OFFSET)
    runtime._scaler.load_state_dict({**runtime._scaler.state_dict(), "scale": 2.0**100})
    for batch in batches:
        take_step(runtime, batch, job)
    again = TorchRuntime(job, NO_OFFSET)
    assert again._scaler.state_dict() != runtime._scaler.state_dict()
    again.restore((name, np.array(values)) for name, values in runtime.state().items())
    assert again._scaler.state_dict() == runtime._scaler.state_dict()
    assert again._scaler.get_scale() == 2.0 ** (100 - len(batches))
    for each in (runtime, again):
        take_step(each, batches[0], job)
    assert again._scaler.state_dict() == runtime._scaler.state_dict()


def test_torch_runtime_refuses_to_recompute_a_model_that_cannot() -> None:
    class Plain(torch.nn.Module):
        pass

    with pytest.raises(ConfigurationError, match="Plain has no gradient checkpointing"):
        _recomputed(Plain())


@pytest.mark.parametrize("method", AdapterMethod)
def test_torch_runtime_trains_adapters_and_head_alone(tmp_path: Path, method: AdapterMethod) -> None:
    recipe = Recipe(learning_rate=0.02, batch_size=8, epochs=20, max_tokens=16)
    job = torch_job(tmp_path, TrainablePart.ADAPTERS, Adapters(rank=4, method=method), recipe=recipe)
    losses = losses_of(job)
    assert np.mean(losses[-4:]) < 0.93 * np.mean(losses[:4])
    update = read_tensors(Path(job.update).read_bytes())
    assert update.keys() == read_tensors(Path(job.weights).read_bytes()).keys()
    assert {is_adapter(name) or name.startswith(("bert.pooler.", "classifier.")) for name in update} == {True}
    assert all(delta.any() for delta in update.values())


def test_torch_runtime_leaves_the_blobs_as_they_were(tmp_path: Path) -> None:
    job = torch_job(tmp_path)
    before = [Path(name).read_bytes() for name in (job.weights, job.frozen)]
    losses_of(job)
    assert [Path(name).read_bytes() for name in (job.weights, job.frozen)] == before


def test_torch_runtime_trains_the_same_job_the_same_way(tmp_path: Path) -> None:
    job = torch_job(tmp_path)
    assert losses_of(job) == losses_of(job)


def test_torch_runtime_refuses_parameters_that_are_lacking(tmp_path: Path) -> None:
    job = torch_job(tmp_path)
    with Path(job.frozen).open("wb") as file:
        write_tensors(file, {})
    with pytest.raises(ModelFormatError, match=r"parameter 'bert\.embeddings.* is in neither parameter file"):
        TorchRuntime(job, NO_OFFSET)


def test_torch_runtime_refuses_weights_that_the_model_has_not(tmp_path: Path) -> None:
    job = torch_job(tmp_path)
    weights = read_tensors(Path(job.weights).read_bytes())
    with Path(job.weights).open("wb") as file:
        write_tensors(file, {**weights, "more": np.zeros(1, dtype=np.float32)})
    with pytest.raises(ModelFormatError, match=r"no parameters \['more'\]"):
        TorchRuntime(job, NO_OFFSET)


def test_torch_runtime_refuses_weights_cut_short(tmp_path: Path) -> None:
    job = torch_job(tmp_path)
    Path(job.weights).write_bytes(Path(job.weights).read_bytes()[:-4])
    with pytest.raises(TensorTableError):
        TorchRuntime(job, NO_OFFSET)


def test_torch_runtime_refuses_a_configuration_that_is_none(tmp_path: Path) -> None:
    job = torch_job(tmp_path)
    Path(job.config).write_bytes(b"not JSON")
    with pytest.raises(ModelFormatError, match="the model cannot be made"):
        TorchRuntime(job, NO_OFFSET)


def test_torch_runtime_reports_a_failing_step(tmp_path: Path) -> None:
    job = torch_job(tmp_path)
    batch = next(examples_of(job).batches(2, 0, 0))
    batch.inputs["input_ids"][0, 0] = 1000
    with pytest.raises(TrainingError, match="training step failed: index out of range"):
        TorchRuntime(job, NO_OFFSET).accumulate(batch, 1.0)


def test_torch_update_that_is_not_finite_is_an_error(tmp_path: Path) -> None:
    runtime = TorchRuntime(torch_job(tmp_path), NO_OFFSET)
    runtime._weights["classifier.bias"].data[0] = np.nan
    with pytest.raises(TrainingError, match=r"made classifier\.bias not finite"):
        runtime.finish()


def test_process_trains_on_torch_where_the_job_says_so(tmp_path: Path) -> None:
    job = torch_job(tmp_path)
    events: list[TrainingEvent] = []
    assert TrainingProcess(job, events.append).wait(120)
    assert isinstance(events[-1], Finished), events[-1]
    assert Path(job.update).exists()


def test_worker_without_torch_says_what_to_install(tmp_path: Path) -> None:
    job = logistic_graph.training_job(tmp_path, runtime=Runtime.TORCH)
    (tmp_path / "job.json").write_bytes(msgspec.json.encode(job))
    script = "import sys; sys.modules['torch'] = None; from edge_sdk.training.worker import main; sys.exit(main())"
    command = [sys.executable, "-c", script, str(tmp_path / "job.json")]
    done = subprocess.run(command, capture_output=True, check=False)
    failed = msgspec.json.decode(done.stdout, type=TrainingEvent)
    assert isinstance(failed, Failed)
    assert failed.failure is Failure.TRAINING
    assert failed.detail == "this job trains on torch, and torch is not installed; pip install 'raffm-edge[torch]'"
    assert done.returncode == 2
