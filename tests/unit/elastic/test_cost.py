from __future__ import annotations

import numpy as np
import pytest

from edge_sdk.elastic.cost import (
    MIB,
    inference_memory_bytes,
    parameter_count,
    trainable_count,
    training_flops,
    training_memory_bytes,
    update_bytes,
)
from edge_sdk.elastic.families import family_of
from edge_sdk.elastic.slicing import shapes_of, slices_of
from edge_sdk.elastic.submodel import Architecture, Submodel, TrainablePart, full, uniform

MINILM = Architecture("bert", 6, 12, 32, 1536, 384, 30522, 512, 5)
ALL, REST, HEAD = TrainablePart.ALL, TrainablePart.NO_EMBEDDINGS, TrainablePart.HEAD
EVERY = tuple(range(6))
NARROW_FFN = Submodel(EVERY, (12,) * 6, (384,) * 6)
NARROW_ATTENTION = Submodel(EVERY, (3,) * 6, (1536,) * 6)
HALF_DEPTH = Submodel((0, 2, 4), (12,) * 3, (1536,) * 3)

# VmHWM in MiB of the training process on BBC News, 160 texts, one thread: Linux 6.18, x86-64, glibc 2.36,
# Python 3.11, onnxruntime 1.31.1, numpy 2.4.
MEASURED = [
    (uniform(MINILM, 12), REST, 16, 32, 296),
    (uniform(MINILM, 12), REST, 8, 32, 262),
    (uniform(MINILM, 12), REST, 16, 64, 399),
    (uniform(MINILM, 12), REST, 8, 128, 423),
    (uniform(MINILM, 12), REST, 4, 128, 315),
    (uniform(MINILM, 12), REST, 32, 32, 389),
    (uniform(MINILM, 12), REST, 1, 32, 246),
    (uniform(MINILM, 9), REST, 16, 32, 249),
    (uniform(MINILM, 9), REST, 8, 32, 219),
    (uniform(MINILM, 9), REST, 16, 64, 335),
    (uniform(MINILM, 6), REST, 16, 32, 201),
    (uniform(MINILM, 6), REST, 8, 32, 171),
    (uniform(MINILM, 6), REST, 16, 64, 262),
    (uniform(MINILM, 3), REST, 16, 32, 151),
    (uniform(MINILM, 3), REST, 8, 32, 132),
    (uniform(MINILM, 3), REST, 16, 64, 195),
    (uniform(MINILM, 3), REST, 8, 128, 201),
    (uniform(MINILM, 3), REST, 4, 128, 158),
    (uniform(MINILM, 3), REST, 32, 32, 190),
    (uniform(MINILM, 3), REST, 1, 32, 122),
    (uniform(MINILM, 1), REST, 16, 32, 122),
    (uniform(MINILM, 1), REST, 8, 32, 106),
    (uniform(MINILM, 1), REST, 16, 64, 153),
    (NARROW_FFN, REST, 16, 32, 198),
    (NARROW_FFN, REST, 8, 128, 306),
    (NARROW_ATTENTION, REST, 16, 32, 250),
    (NARROW_ATTENTION, REST, 8, 128, 338),
    (HALF_DEPTH, REST, 16, 32, 191),
    (HALF_DEPTH, REST, 8, 128, 265),
    (uniform(MINILM, 12), HEAD, 16, 32, 129),
    (uniform(MINILM, 12), HEAD, 8, 128, 145),
    (uniform(MINILM, 3), HEAD, 16, 32, 93),
    (uniform(MINILM, 3), HEAD, 8, 128, 100),
    (uniform(MINILM, 12), ALL, 16, 32, 524),
    (uniform(MINILM, 12), ALL, 8, 128, 656),
    (uniform(MINILM, 3), ALL, 16, 32, 378),
    (uniform(MINILM, 3), ALL, 8, 128, 425),
]
# The same of a process that loads a released model and predicts texts of 32 tokens one by one.
MEASURED_INFERENCE = [(12, False, 201), (12, True, 109), (6, False, 180), (6, True, 98), (3, False, 170), (3, True, 95)]


@pytest.mark.parametrize(("submodel", "part", "batch_size", "tokens", "measured_mib"), MEASURED)
def test_training_memory_is_within_a_tenth_of_what_was_measured(
    submodel: Submodel, part: TrainablePart, batch_size: int, tokens: int, measured_mib: int
) -> None:
    predicted = training_memory_bytes(submodel, MINILM, part, batch_size=batch_size, max_tokens=tokens)
    assert predicted / MIB == pytest.approx(measured_mib, rel=0.04 if part is REST else 0.1)


@pytest.mark.parametrize(("heads", "measured_mib"), [(12, 311), (6, 217)])
def test_training_memory_with_a_nested_quarter_is_within_a_tenth(heads: int, measured_mib: int) -> None:
    nested, submodel = uniform(MINILM, 3), uniform(MINILM, heads)
    predicted = training_memory_bytes(submodel, MINILM, REST, batch_size=16, max_tokens=32, nested=nested)
    assert predicted / MIB == pytest.approx(measured_mib, rel=0.04)


@pytest.mark.parametrize(("heads", "quantised", "measured_mib"), MEASURED_INFERENCE)
def test_inference_memory_is_within_a_tenth_of_what_was_measured(
    heads: int, quantised: bool, measured_mib: int
) -> None:
    predicted = inference_memory_bytes(uniform(MINILM, heads), MINILM, max_tokens=32, quantised=quantised)
    assert predicted / MIB == pytest.approx(measured_mib, rel=0.1)


def shapes_of_bert(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """The parameters of ``BertForSequenceClassification``, as its state dict lists them."""
    hidden, ffn, layer = architecture.hidden, architecture.ffn, family_of("bert").layer
    rows = {"word": architecture.vocabulary, "position": architecture.positions, "token_type": 2}
    shapes = {f"bert.embeddings.{name}_embeddings.weight": (count, hidden) for name, count in rows.items()}
    linear = {"bert.pooler.dense": (hidden, hidden), "classifier": (architecture.labels, hidden)}
    norms = ["bert.embeddings.LayerNorm"]
    for prefix in (layer.format(index) for index in range(architecture.layers)):
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            linear[f"{prefix}attention.{name}"] = (hidden, hidden)
        linear |= {f"{prefix}intermediate.dense": (ffn, hidden), f"{prefix}output.dense": (hidden, ffn)}
        norms += [f"{prefix}attention.output.LayerNorm", f"{prefix}output.LayerNorm"]
    shapes |= {f"{name}.weight": shape for name, shape in linear.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in linear.items()}
    return shapes | {f"{name}.{kind}": (hidden,) for name in norms for kind in ("weight", "bias")}


@pytest.mark.parametrize(
    "submodel", [full(MINILM), uniform(MINILM, 5), HALF_DEPTH, Submodel((1, 5), (2, 7), (9, 1000))]
)
@pytest.mark.parametrize("part", list(TrainablePart))
def test_counts_are_those_of_the_sliced_parameters(submodel: Submodel, part: TrainablePart) -> None:
    family = family_of("bert")
    sliced = shapes_of(slices_of(submodel, MINILM, family, shapes_of_bert(MINILM)))
    counts = {name: int(np.prod(shape)) for name, shape in sliced.items()}
    trained = sum(count for name, count in counts.items() if family.is_trainable(name, part))
    assert parameter_count(submodel, MINILM) == sum(counts.values())
    assert trainable_count(submodel, MINILM, part) == trained
    assert update_bytes(submodel, MINILM, part) == 4 * trained


def test_minilm_has_its_published_size() -> None:
    assert parameter_count(full(MINILM), MINILM) == 22_713_216 + 5 * 385


def test_training_flops_are_six_per_weight_and_token_for_short_texts() -> None:
    weights = trainable_count(full(MINILM), MINILM, REST)
    assert training_flops(full(MINILM), MINILM, REST, samples=3, tokens=32) == pytest.approx(6 * 96 * weights, rel=0.05)


def test_training_flops_of_the_head_alone_are_about_a_third() -> None:
    flops = [training_flops(full(MINILM), MINILM, part, samples=1, tokens=32) for part in (HEAD, REST)]
    assert flops[0] == pytest.approx(flops[1] / 3, rel=0.02)


@pytest.mark.parametrize("part", list(TrainablePart))
def test_training_memory_rises_with_every_head(part: TrainablePart) -> None:
    ladder = [uniform(MINILM, heads) for heads in range(1, 13)]
    costs = [training_memory_bytes(submodel, MINILM, part, batch_size=8, max_tokens=32) for submodel in ladder]
    assert costs == sorted(set(costs))
