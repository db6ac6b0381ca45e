"""The rule of RaFFM's own code (arXiv 2310.00247), as a peer: it lives in this benchmark alone.

Every round: rank the units by the L1 norm of their weights and reorder them; cut prefixes; then zero each parameter,
add every device's slice, and divide by the number of devices, not by how many covered the entry. Kinder than that code
in one respect: whole heads and neurons move with all that belongs to them, so reordering never changes the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from coordinator.aggregation.coverage import UpdateSource
from coordinator.config import Salience
from coordinator.models.permutation import permute
from coordinator.models.salience import unit_salience
from edge_sdk.elastic.slicing import Array, shapes_of
from edge_sdk.protocol.encodings import decode
from edge_sdk.protocol.tensors import read_tensors

if TYPE_CHECKING:
    from tests.benchmarks._recipe_rounds import Problem


def permuted_by_l1(problem: Problem, parameters: Mapping[str, Array]) -> dict[str, Array]:
    """The same model with its heaviest heads and neurons first."""
    current = replace(problem.foundation, parameters=dict(parameters))
    salience = unit_salience(Salience.L1, current, problem.templates, (), threads=1)
    architecture = current.architecture
    return permute(parameters, current.family, architecture, salience.orders(architecture))


def authors_rule(base: Mapping[str, Array], updates: Sequence[UpdateSource]) -> dict[str, Array]:
    """θ_j ← Σ_k m_kj (θ_kj + Δ_kj) / K over the K updates: what few cover shrinks, trained or not."""
    result = {name: np.zeros_like(values) for name, values in base.items()}
    for update in updates:
        deltas = decode(read_tensors(update.path.read_bytes()), shapes_of(update.slices), update.encoding)
        for name, region in update.slices.items():
            for whole, part in region.rectangles():
                result[name][whole] += (base[name][whole] + deltas[name][part]) / np.float32(len(updates))
    return result
