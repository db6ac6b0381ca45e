"""What an update loses goes into the next one, wherever both hold the same part of the model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edge_sdk.elastic.families import family_of
from edge_sdk.elastic.slicing import Array, Slices, slices_of
from edge_sdk.elastic.submodel import Adapters, Architecture, Submodel, full
from edge_sdk.protocol.encodings import decode
from edge_sdk.protocol.messages import FP32, Encoding, EncodingKind
from edge_sdk.protocol.tensors import read_tensors
from edge_sdk.training.feedback import write_update
from edge_sdk.training.job import Finished, TrainingEvent, TrainingJob
from edge_sdk.training.process import TrainingProcess
from tests.support import logistic_graph

TENTH = Encoding(kind=EncodingKind.TOPK, share=0.1)
INT8 = Encoding(kind=EncodingKind.INT8)
ARCHITECTURE = Architecture("gpt2", 2, 4, 2, 12, 8, 11, 5, 3, adapters=Adapters(rank=4))
LAYER = {
    "attn.c_attn.weight": (8, 24),
    "attn.c_attn.bias": (24,),
    "attn.c_attn.lora_A.weight": (4, 8),
    "attn.c_attn.lora_B.weight": (24, 4),
    "attn.c_proj.weight": (8, 8),
    "mlp.c_fc.weight": (8, 12),
    "mlp.c_proj.weight": (12, 8),
}
SHAPES: dict[str, tuple[int, ...]] = {
    "score.weight": (3, 8),
    **{f"transformer.h.{index}.{name}": shape for index in range(2) for name, shape in LAYER.items()},
}
SUBMODELS = {
    "whole": full(ARCHITECTURE),
    "narrow": Submodel((0, 1), (2, 1), (6, 3), 2),
    "one layer": Submodel((1,), (3,), (12,), 4),
    "around the end": Submodel((0, 1), (3, 2), (7, 5), 3, first_head=2, first_neuron=8),
}


def slices(submodel: Submodel) -> Slices:
    return slices_of(submodel, ARCHITECTURE, family_of(ARCHITECTURE.family), SHAPES)


def deltas_of(submodel: Submodel, seed: int) -> dict[str, Array]:
    random = np.random.default_rng(seed)
    return {name: random.standard_normal(region.shape, np.float32) for name, region in slices(submodel).items()}


def job_in(folder: Path, submodel: Submodel, round_number: int, encoding: Encoding = TENTH) -> TrainingJob:
    folder.mkdir(exist_ok=True)
    before = folder / f"residual-{round_number - 1}"
    return msgspec.structs.replace(
        logistic_graph.training_job(folder),
        architecture=ARCHITECTURE,
        submodel=submodel,
        update=str(folder / f"update-{round_number}"),
        encoding=encoding,
        rounding_seed=round_number,
        residual=str(before) if before.exists() else "",
        new_residual=str(folder / f"residual-{round_number}"),
    )


def said(job: TrainingJob) -> dict[str, Array]:
    shapes = {name: region.shape for name, region in slices(job.submodel).items()}
    return decode(read_tensors(Path(job.update).read_bytes()), shapes, job.encoding)


def on_whole(values: dict[str, Array], submodel: Submodel) -> dict[str, Array]:
    """In the full model's place, zero elsewhere."""
    placed = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    for name, region in slices(submodel).items():
        region.put(placed[name], values[name])
    return placed


@pytest.mark.parametrize("then", SUBMODELS)
@pytest.mark.parametrize("first", SUBMODELS)
def test_what_was_lost_is_made_up_for_where_both_submodels_are_the_same_part(
    tmp_path: Path, first: str, then: str
) -> None:
    one, two = job_in(tmp_path, SUBMODELS[first], 1), None
    lost = deltas_of(one.submodel, 1)
    write_update(one, lost)
    two = job_in(tmp_path, SUBMODELS[then], 2)
    rest = deltas_of(two.submodel, 2)
    write_update(two, rest)
    held = on_whole({name: np.ones_like(values) for name, values in rest.items()}, two.submodel)
    made_up, sent, left = on_whole(lost, one.submodel), on_whole(said(two), two.submodel), on_whole(rest, two.submodel)
    trained = on_whole(deltas_of(two.submodel, 2), two.submodel)
    for name in SHAPES:
        np.testing.assert_array_equal(sent[name] + left[name], trained[name] + held[name] * made_up[name], name)


def test_submodels_that_share_nothing_make_up_for_nothing(tmp_path: Path) -> None:
    """Two rolling windows beside each other: only what does not depend on width is the same."""
    left, right = (Submodel((0, 1), (2, 2), (6, 6), 4, first, 3 * first) for first in (0, 2))
    write_update(job_in(tmp_path, left, 1), deltas_of(left, 1))
    job, rest = job_in(tmp_path, right, 2), deltas_of(right, 2)
    write_update(job, rest)
    name = "transformer.h.0.mlp.c_fc.weight"
    np.testing.assert_array_equal(said(job)[name] + rest[name], deltas_of(right, 2)[name])


def test_update_that_is_written_again_has_the_same_bytes(tmp_path: Path) -> None:
    job = job_in(tmp_path, SUBMODELS["narrow"], 1, INT8)
    write_update(job, deltas_of(job.submodel, 1))
    again = job_in(tmp_path, SUBMODELS["whole"], 2, INT8)
    written = []
    for _ in range(2):
        write_update(again, deltas_of(again.submodel, 2))
        written.append((Path(again.update).read_bytes(), Path(again.new_residual).read_bytes()))
    assert written[0] == written[1]


@pytest.mark.parametrize("harm", ["cut short", "a bit", "empty", "gone", "another model", "unsealed"])
def test_residual_that_is_not_this_models_is_left_out(tmp_path: Path, harm: str) -> None:
    whole = SUBMODELS["whole"]
    first = job_in(tmp_path, whole, 1)
    if harm == "another model":
        first = msgspec.structs.replace(first, architecture=replace(ARCHITECTURE, labels=4))
    write_update(first, deltas_of(whole, 1))
    residual = Path(first.new_residual)
    data = residual.read_bytes()
    residual.write_bytes(
        {
            "cut short": data[:-5],
            "a bit": data[:-7] + bytes([data[-7] ^ 0x40]) + data[-6:],
            "empty": b"",
            "unsealed": Path(first.update).read_bytes(),
        }.get(harm, data)
    )
    if harm == "gone":
        residual.rename(tmp_path / "elsewhere")
    job, rest = msgspec.structs.replace(job_in(tmp_path, whole, 2), residual=str(residual)), deltas_of(whole, 2)
    write_update(job, rest)
    for name, values in deltas_of(whole, 2).items():
        np.testing.assert_array_equal(said(job)[name] + rest[name], values)


@pytest.mark.parametrize("encoding", [FP32, msgspec.structs.replace(INT8, feedback=False)])
def test_nothing_is_kept_where_nothing_is_lost_or_the_offer_says_so(tmp_path: Path, encoding: Encoding) -> None:
    job = job_in(tmp_path, SUBMODELS["whole"], 1, encoding)
    write_update(job, deltas_of(job.submodel, 1))
    assert not Path(job.new_residual).exists()


def test_training_process_writes_the_same_encoded_update_again(tmp_path: Path) -> None:
    job = logistic_graph.training_job(tmp_path, encoding=INT8, rounding_seed=7, new_residual=str(tmp_path / "residual"))
    updates = []
    for _ in range(2):
        events: list[TrainingEvent] = []
        TrainingProcess(job, events.append).wait()
        assert isinstance(events[-1], Finished)
        updates.append(Path(job.update).read_bytes())
    assert updates[0] == updates[1]
    tensors = read_tensors(updates[0])
    assert {name: str(values.dtype) for name, values in tensors.items()} == {
        "classifier.weight:scale": "float32",
        "classifier.bias:scale": "float32",
        "classifier.weight": "int8",
        "classifier.bias": "int8",
    }
    assert Path(job.new_residual).stat().st_size > 0
