"""Counts are those of slices; predicted memory is what processes were measured to take.

The measurements are peaks of resident memory (VmHWM) in MiB, of one thread, on Linux 6.18, x86-64, glibc 2.36, Python
3.11, onnxruntime 1.31.1, torch 2.13, transformers 5.23, numpy 2.4; :mod:`tests.support.costed_models` says of what.
"""

from __future__ import annotations

import csv
import functools
import random
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from coordinator.models.foundation import Foundation, load_foundation
from edge_sdk.elastic.cost import CostModel
from edge_sdk.elastic.runtimes import MIB, ONNX, TORCH
from edge_sdk.elastic.slicing import shapes_of, slices_of
from edge_sdk.elastic.submodel import (
    AdapterMethod,
    Adapters,
    Architecture,
    Role,
    Submodel,
    TrainablePart,
    full,
    uniform,
)
from tests.support.costed_models import cost_model
from tests.support.tiny_models import ALL_FAMILIES, LABELS, TASKS, save_tiny_model

ALL, REST, HEAD = TrainablePart.ALL, TrainablePart.NO_EMBEDDINGS, TrainablePart.HEAD
ADAPTERS = Adapters(rank=4, targets=tuple(Role))
WITHOUT_GRAPH = [method for method in AdapterMethod if not method.has_graph]
RUNTIMES = {"onnx": ONNX, "torch": TORCH}
Row = dict[str, str]


def rows_of(name: str) -> list[Row]:
    with (Path(__file__).parent / name).open(newline="") as file:
        return list(csv.DictReader(file))


TRAINED, PREDICTED = rows_of("measured_training.csv"), rows_of("measured_prediction.csv")


@functools.cache
def tiny(family: str, adapters: Adapters | None) -> Foundation:
    task = TASKS[family][-1]
    labels = () if task.generates else LABELS
    with tempfile.TemporaryDirectory() as folder:
        return load_foundation(
            save_tiny_model(Path(folder), family, task=task), labels, 0, task=task, adapters=adapters
        )


def random_submodel(architecture: Architecture, drawn: random.Random) -> Submodel:
    """Some layers, of any widths, but of one number of heads in each of an encoder-decoder's stacks."""
    layers = tuple(
        sorted(layer for stack in architecture.stacks for layer in drawn.sample(stack, drawn.randint(1, len(stack))))
    )
    heads = [drawn.randint(1, architecture.heads) for _ in layers]
    if architecture.encoder_layers:
        by_stack = [drawn.randint(1, architecture.heads) for _ in architecture.stacks]
        heads = [by_stack[layer >= architecture.encoder_layers] for layer in layers]
    ffn = tuple(drawn.randint(1, architecture.ffn) for _ in layers)
    rank = drawn.randint(1, architecture.adapter_rank) if architecture.adapter_rank else 0
    first = drawn.randrange(architecture.heads), drawn.randrange(architecture.ffn)
    return Submodel(layers, tuple(heads), ffn, rank, *first)


@pytest.mark.parametrize(
    ("family", "adapters"),
    [
        *((family, adapters) for family in ALL_FAMILIES for adapters in (None, ADAPTERS)),
        *((family, replace(ADAPTERS, method=method)) for family in ("gpt2", "llama") for method in WITHOUT_GRAPH),
    ],
    ids=lambda value: value.method.value if isinstance(value, Adapters) else value,
)
def test_counts_are_those_of_the_slices(family: str, adapters: Adapters | None) -> None:
    foundation = tiny(family, adapters)
    architecture, shapes = foundation.architecture, {name: v.shape for name, v in foundation.parameters.items()}
    model, drawn = CostModel.of(architecture, shapes), random.Random(7)
    for submodel in (full(architecture), *(random_submodel(architecture, drawn) for _ in range(20))):
        slices = slices_of(submodel, architecture, foundation.family, shapes)
        assert model.parameter_count(submodel) == sum(region.size for region in slices.values())
        for part in TrainablePart:
            trained = {name for name in shapes_of(slices) if foundation.family.is_trainable(name, part)}
            assert model.trainable_count(submodel, part) == sum(slices[name].size for name in trained)
            assert model.update_bytes(submodel, part) == 4 * model.trainable_count(submodel, part)


def test_minilm_has_its_published_size() -> None:
    model = cost_model("minilm")
    assert model.parameter_count(full(model.architecture)) == 22_713_216 + 5 * 385


def numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split()))


def training_mib(row: Row) -> float:
    """What is predicted for a row of ``measured_training.csv``."""
    model, layers = cost_model(row["model"]), numbers(row["layers"])
    heads, ffn = (numbers(row[unit]) * (1 if " " in row[unit] else len(layers)) for unit in ("heads", "ffn"))
    return (
        model.training_memory_bytes(
            Submodel(layers, heads, ffn, int(row["rank"])),
            TrainablePart(row["part"]),
            batch_size=int(row["batch_size"]),
            max_tokens=int(row["tokens"]),
            nested=[uniform(model.architecture, count) for count in numbers(row["nested_heads"])],
            runtime=RUNTIMES[row["runtime"]],
        )
        / MIB
    )


def prediction_mib(row: Row) -> float:
    """What is predicted for a row of ``measured_prediction.csv``."""
    model = cost_model(row["model"])
    submodel = uniform(model.architecture, int(row["heads"]))
    quantised, runtime = row["quantised"] == "1", RUNTIMES[row["runtime"]]
    tokens = int(row["tokens"])
    return model.inference_memory_bytes(submodel, max_tokens=tokens, quantised=quantised, runtime=runtime) / MIB


def name_of(row: Row) -> str:
    return "-".join(row.values())


@pytest.mark.parametrize("row", TRAINED, ids=name_of)
def test_training_memory_is_what_was_measured(row: Row) -> None:
    assert training_mib(row) == pytest.approx(int(row["mib"]), rel=0.15)


@pytest.mark.parametrize("row", PREDICTED, ids=name_of)
def test_inference_memory_is_what_was_measured(row: Row) -> None:
    assert prediction_mib(row) == pytest.approx(int(row["mib"]), rel=0.15)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_median_error_of_training_memory_is_small(runtime: str) -> None:
    rows = [row for row in TRAINED if row["runtime"] == runtime]
    errors = [abs(training_mib(row) / int(row["mib"]) - 1) for row in rows]
    assert statistics.median(errors) < 0.03


def test_training_flops_are_six_per_weight_and_token_for_short_texts() -> None:
    model = cost_model("minilm")
    whole = full(model.architecture)
    weights = model.trainable_count(whole, REST)
    assert model.training_flops(whole, REST, samples=3, max_tokens=32) == pytest.approx(6 * 96 * weights, rel=0.05)


def test_training_flops_fall_with_what_is_frozen() -> None:
    plain, lora = cost_model("minilm"), cost_model("minilm-lora")
    whole = full(plain.architecture)
    flops = {part: plain.training_flops(whole, part, samples=1, max_tokens=32) for part in (ALL, REST, HEAD)}
    adapters = lora.training_flops(full(lora.architecture), TrainablePart.ADAPTERS, samples=1, max_tokens=32)
    assert flops[ALL] == flops[REST]  # embeddings are looked up
    assert flops[HEAD] == pytest.approx(flops[REST] / 3, rel=0.02)
    assert adapters == pytest.approx(flops[REST] * 2 / 3, rel=0.05)


def test_training_flops_of_nested_widths_are_added() -> None:
    model = cost_model("vit")
    whole, half = full(model.architecture), uniform(model.architecture, 3)
    both = model.training_flops(whole, REST, samples=5, max_tokens=0, nested=[half])
    assert both == sum(model.training_flops(each, REST, samples=5, max_tokens=0) for each in (whole, half))


def test_logits_of_every_token_cost_a_generator_more_than_those_of_every_text() -> None:
    model, small = cost_model("llama"), Submodel((0,), (1,), (1,))
    flops = [model.training_flops(small, HEAD, samples=1, max_tokens=tokens) for tokens in (32, 64)]
    head = 6 * 384 * 4000
    assert flops[0] > 32 * head
    assert flops[1] > 2 * flops[0]


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", ["minilm", "vit", "llama", "gpt2", "minilm-lora"])
@pytest.mark.parametrize("part", list(TrainablePart))
def test_training_memory_rises_with_every_head(name: str, part: TrainablePart, runtime: str) -> None:
    model = cost_model(name)
    widths = [uniform(model.architecture, heads) for heads in range(1, model.architecture.heads + 1)]
    costs = [
        model.training_memory_bytes(width, part, batch_size=8, max_tokens=32, runtime=RUNTIMES[runtime])
        for width in widths
    ]
    assert costs == sorted(set(costs))
