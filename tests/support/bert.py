"""The parameters of a BERT by name and shape, without a framework: what the elastic tests and benchmarks cut up."""

from __future__ import annotations

import numpy as np

from edge_sdk.elastic.families import Family, family_of
from edge_sdk.elastic.slicing import Array, Slices, slices_of
from edge_sdk.elastic.submodel import Architecture, Submodel

TINY = Architecture(
    family="bert", layers=2, heads=4, head_size=2, ffn=12, hidden=8, vocabulary=11, positions=5, labels=3
)
MINILM = Architecture(
    family="bert", layers=6, heads=12, head_size=32, ffn=1536, hidden=384, vocabulary=30522, positions=512, labels=2
)


def shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Embeddings, layers and pooler, in the order of the state dict: 7 + 16 arrays a layer."""
    hidden, width, ffn = architecture.hidden, architecture.heads * architecture.head_size, architecture.ffn
    linear = {
        "attention.self.query": (width, hidden),
        "attention.self.key": (width, hidden),
        "attention.self.value": (width, hidden),
        "attention.output.dense": (hidden, width),
        "intermediate.dense": (ffn, hidden),
        "output.dense": (hidden, ffn),
    }
    table: dict[str, tuple[int, ...]] = {
        "bert.embeddings.word_embeddings.weight": (architecture.vocabulary, hidden),
        "bert.embeddings.position_embeddings.weight": (architecture.positions, hidden),
        "bert.embeddings.token_type_embeddings.weight": (2, hidden),
        **_norm("bert.embeddings.LayerNorm", hidden),
    }
    for prefix in (f"bert.encoder.layer.{index}." for index in range(architecture.layers)):
        for module, (rows, columns) in linear.items():
            table |= {f"{prefix}{module}.weight": (rows, columns), f"{prefix}{module}.bias": (rows,)}
        table |= _norm(f"{prefix}attention.output.LayerNorm", hidden) | _norm(f"{prefix}output.LayerNorm", hidden)
    return table | {"bert.pooler.dense.weight": (hidden, hidden), "bert.pooler.dense.bias": (hidden,)}


def weights(architecture: Architecture, seed: int) -> dict[str, Array]:
    """Random normal float32 values."""
    generator = np.random.default_rng(seed)
    return {name: generator.standard_normal(shape, np.float32) for name, shape in shapes(architecture).items()}


def family(architecture: Architecture) -> Family:
    return family_of(architecture.family)


def slices(submodel: Submodel, architecture: Architecture) -> Slices:
    return slices_of(submodel, architecture, family(architecture), shapes(architecture))


def _norm(name: str, size: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}
