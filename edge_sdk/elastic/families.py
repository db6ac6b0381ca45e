"""Where each architecture keeps its elastic units: one declarative row per family.

A row names module paths inside one layer, relative to the layer, as Hugging Face's state dict writes them. Adding an
architecture is adding a row; whatever is not in the table is refused by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from edge_sdk.elastic.submodel import TrainablePart
from edge_sdk.errors import UnsupportedArchitectureError


class Unit(str, Enum):
    """What an axis of a parameter counts, where that axis is elastic."""

    HEADS = "heads"
    FFN = "ffn"


@dataclass(frozen=True, slots=True)
class Family:
    """One architecture's parameter names.

    ``layer`` is the prefix of layer ``{}``; ``q k v o up down`` are Linear modules inside it (weight (out, in), bias
    (out,)); ``embeddings`` are prefixes of what the trainable part "no-embeddings" leaves frozen; ``head`` are prefixes
    of the task head.
    """

    name: str
    layer: str
    q: str
    k: str
    v: str
    o: str
    up: str
    down: str
    embeddings: tuple[str, ...]
    head: tuple[str, ...]

    def layer_index(self, parameter: str) -> int | None:
        """The layer that ``parameter`` belongs to, ``None`` for embeddings and head."""
        prefix = self.layer.split("{}")[0]
        return int(parameter[len(prefix) :].split(".", 1)[0]) if parameter.startswith(prefix) else None

    def axes(self, parameter: str) -> tuple[Unit | None, ...]:
        """For each axis of ``parameter`` (2 of a weight, 1 of a bias or norm), the unit that it counts, or ``None``."""
        index = self.layer_index(parameter)
        is_matrix = parameter.endswith("weight") and "norm" not in parameter.lower()
        rank = (None, None) if is_matrix else (None,)
        if index is None:
            return rank
        module, kind = parameter[len(self.layer.format(index)) :].rsplit(".", 1)
        rows = {self.q: Unit.HEADS, self.k: Unit.HEADS, self.v: Unit.HEADS, self.up: Unit.FFN}
        columns = {self.o: Unit.HEADS, self.down: Unit.FFN}
        if module in rows:
            return (rows[module], None) if kind == "weight" else (rows[module],)
        if module in columns and kind == "weight":
            return (None, columns[module])
        return rank

    def is_trainable(self, parameter: str, part: TrainablePart) -> bool:
        """Whether a device that trains ``part`` trains ``parameter``."""
        if part is TrainablePart.HEAD:
            return parameter.startswith(self.head)
        return part is TrainablePart.ALL or not parameter.startswith(self.embeddings)


def _bert_like(name: str, head: tuple[str, ...] = ("classifier.",)) -> Family:
    """BERT and the families that kept its module names below their own prefix."""
    return Family(
        name=name,
        layer=f"{name}.encoder.layer.{{}}.",
        q="attention.self.query",
        k="attention.self.key",
        v="attention.self.value",
        o="attention.output.dense",
        up="intermediate.dense",
        down="output.dense",
        embeddings=(f"{name}.embeddings",),
        head=head,
    )


_TABLE = {
    family.name: family
    for family in (
        _bert_like("bert", head=("bert.pooler.", "classifier.")),
        _bert_like("roberta"),
        _bert_like("electra"),
        Family(
            name="distilbert",
            layer="distilbert.transformer.layer.{}.",
            q="attention.q_lin",
            k="attention.k_lin",
            v="attention.v_lin",
            o="attention.out_lin",
            up="ffn.lin1",
            down="ffn.lin2",
            embeddings=("distilbert.embeddings",),
            head=("pre_classifier.", "classifier."),
        ),
    )
}


def family_of(model_type: str) -> Family:
    """The row of a Hugging Face ``model_type``; ``UnsupportedArchitectureError`` where there is none."""
    if model_type not in _TABLE:
        msg = (
            f"architecture {model_type!r} is not supported: its parameter names are unknown; "
            f"use one of {', '.join(sorted(_TABLE))}, or add a row to edge_sdk/elastic/families.py"
        )
        raise UnsupportedArchitectureError(msg)
    return _TABLE[model_type]
