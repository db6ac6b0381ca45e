"""Merges the factors of LoRA and DoRA of mixed ranks and widths: their products are averaged, not the factors.

In y = Wx + s·B·A·x, the mean of the products B_k·A_k is not the product of the means of B_k and of A_k. For every entry
of the product, and for each of the rank-one components that update k holds, the rule is that of
:mod:`coordinator.aggregation.coverage`. With m_ki = 1 where k covers row i, and r_k its rank:

    P = B·A ← P + η · Σ_k w_k m_ki (B_k·A_k - B[:, :r_k]·A[:r_k, :]) / max(Σ_k w_k m_ki, c · Σ_k w_k)

At c = 0 and full ranks this is the mean of the products B_k·A_k. If ranks differ, a plain mean would in every round
shrink what only the higher ranks hold (the rank collapse of arXiv 2602.13486); this rule does not. Only one side of a
module is elastic, its outputs or its inputs, so the weights multiply one factor only, and P is never formed if the
ranks are small.

``svd`` (FlexLoRA, arXiv 2402.11505) factors P again: B = U·Σ and A = Vᵀ, largest singular values first, so that any
prefix of ranks is P's best approximation of that rank. It is exact if P's rank is at most the adapters'. Rows of A keep
unit length even where Σ is 0, so training can use every component.

``stack`` (FLoRA, arXiv 2409.05976) adds s·P to W, which is exact for any ranks, and initialises the adapters again as
PEFT does: B is zero, A uniform within 1/√inputs. W then differs in every version.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coordinator.aggregation.coverage import OpenUpdate, UpdateSource, opened
from edge_sdk.elastic.slicing import Array, Region
from edge_sdk.errors import ConfigurationError, UnsupportedArchitectureError

_A, _B = ".lora_A.weight", ".lora_B.weight"
Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Folding:
    """What ``stack`` needs: ``scale`` is s above; W is (in, out) if ``is_transposed``; ``seed`` is for new adapters."""

    scale: float
    is_transposed: bool
    seed: int


def adapted_modules(names: Iterable[str]) -> list[str]:
    """The modules to which LoRA or DoRA was added, by the names of all parameters."""
    return [name.removesuffix(_A) for name in names if name.endswith(_A)]


def factor_names(module: str) -> tuple[str, str]:
    """The parameters A and B of a module."""
    return module + _A, module + _B


def merge(
    base: Mapping[str, Array],
    updates: Sequence[UpdateSource],
    *,
    floor: float,
    rate: float = 1.0,
    folding: Folding | None = None,
) -> dict[str, Array]:
    """The next A and B of every adapted module by ``svd``, or with ``folding`` those and the next W by ``stack``.

    A module that nobody trained keeps its factors, bit for bit. Raises ``ConfigurationError`` where W is to be changed
    but is not in ``base``, ``UnsupportedArchitectureError`` where both sides of a module are elastic, and as
    :func:`~coordinator.aggregation.coverage.opened`.
    """
    result: dict[str, Array] = {}
    with opened(updates) as files:
        least = floor * sum(float(update.weight) for update in files)
        for module in adapted_modules(base):
            a, b = factor_names(module)
            trained = [_Trained.read(update, a, b, base) for update in files if a in update.slices]
            result |= {a: base[a].copy(), b: base[b].copy()}
            if any(factors.has_moved for factors in trained):
                product = _product(module, base, trained, least, rate)
                result |= (
                    product.refactored(module, len(base[a]))
                    if folding is None
                    else _folded(product, module, base, folding)
                )
    return result


@dataclass(frozen=True, slots=True)
class _Trained:
    """One update's factors, (outputs, rank) and (rank, inputs): zero but for the ``rows`` and ``columns`` it covers."""

    weight: float
    left: Matrix
    right: Matrix
    rows: NDArray[np.bool_]
    columns: NDArray[np.bool_]
    has_moved: bool

    @classmethod
    def read(cls, update: OpenUpdate, a: str, b: str, base: Mapping[str, Array]) -> _Trained:
        """The factors named ``a`` and ``b`` as the device has them after training."""
        right, right_moved = _factor(update, a, base[a])
        left, left_moved = _factor(update, b, base[b])
        rank = update.slices[a].shape[0]
        rows = _mask(update.slices[b], 0, len(left))
        columns = _mask(update.slices[a], 1, right.shape[1])
        return cls(float(update.weight), left[:, :rank], right[:rank], rows, columns, left_moved or right_moved)

    def transposed(self) -> _Trained:
        """Of the transposed product."""
        return _Trained(self.weight, self.right.T, self.left.T, self.columns, self.rows, self.has_moved)


@dataclass(frozen=True, slots=True)
class _Product:
    """(outputs, inputs): the sum of ``lefts[k] @ rights[k]``."""

    lefts: list[Matrix]
    rights: list[Matrix]

    def transposed(self) -> _Product:
        """(inputs, outputs)."""
        return _Product([right.T for right in self.rights], [left.T for left in self.lefts])

    def dense(self) -> Matrix:
        """Added up one by one: no larger than itself, however many there are."""
        total = np.zeros((len(self.lefts[0]), self.rights[0].shape[1]))
        for left, right in zip(self.lefts, self.rights, strict=True):
            total += left @ right
        return total

    def refactored(self, module: str, rank: int) -> dict[str, Array]:
        """Its best approximation of ``rank`` as A and B."""
        left, values, right = self._svd()
        found = min(rank, len(values))  # fewer where a side of the module is smaller than the rank
        a, b = np.zeros((rank, right.shape[1]), np.float32), np.zeros((len(left), rank), np.float32)
        a[:found] = right[:found]
        b[:, :found] = left[:, :found] * values[:found]
        return dict(zip(factor_names(module), (a, b), strict=True))

    def _svd(self) -> tuple[Matrix, Matrix, Matrix]:
        """Through the triangles of both stacks where these are smaller than the product."""
        ranks = sum(left.shape[1] for left in self.lefts)
        if ranks >= min(len(self.lefts[0]), self.rights[0].shape[1]):
            return np.linalg.svd(self.dense(), full_matrices=False)
        left, left_triangle = np.linalg.qr(np.hstack(self.lefts))
        right, right_triangle = np.linalg.qr(np.vstack(self.rights).T)
        inner_left, values, inner_right = np.linalg.svd(left_triangle @ right_triangle.T)
        return left @ inner_left, values, inner_right @ right.T


def _product(
    module: str, base: Mapping[str, Array], trained: Sequence[_Trained], least: float, rate: float
) -> _Product:
    a, b = (base[name].astype(np.float64) for name in factor_names(module))
    if all(factors.columns.all() for factors in trained):
        return _weighted(b, a, trained, least, rate)
    if all(factors.rows.all() for factors in trained):
        return _weighted(a.T, b.T, [factors.transposed() for factors in trained], least, rate).transposed()
    raise UnsupportedArchitectureError(
        f"adapters of {module} cannot be merged: its inputs and its outputs are both elastic; use the merge 'mean'"
    )


def _weighted(left: Matrix, right: Matrix, trained: Sequence[_Trained], least: float, rate: float) -> _Product:
    """The formula above: of the base remains, row by row and component by component, what was not replaced."""
    covered = np.array([factors.weight * factors.rows for factors in trained])  # (updates, rows)
    divisor = np.maximum(covered.sum(axis=0), least)
    shares = rate * np.divide(covered, divisor, out=np.zeros_like(covered), where=covered > 0)[:, :, None]
    remaining = np.ones_like(left)
    for share, factors in zip(shares, trained, strict=True):
        remaining[:, : factors.left.shape[1]] -= share
    lefts = [remaining * left, *(share * factors.left for share, factors in zip(shares, trained, strict=True))]
    return _Product(lefts, [right, *(factors.right for factors in trained)])


def _folded(product: _Product, module: str, base: Mapping[str, Array], folding: Folding) -> dict[str, Array]:
    name, (a, b) = f"{module}.weight", factor_names(module)
    if name not in base:
        raise ConfigurationError(f"{name} is not among the parameters to aggregate, so adapters cannot be added to it")
    step = folding.scale * (product.transposed() if folding.is_transposed else product).dense()
    bound = 1 / np.sqrt(base[a].shape[1])
    generator = np.random.default_rng([folding.seed, zlib.crc32(module.encode())])
    return {
        name: (base[name] + step).astype(np.float32),
        a: generator.uniform(-bound, bound, base[a].shape).astype(np.float32),
        b: np.zeros_like(base[b]),
    }


def _factor(update: OpenUpdate, name: str, base: Array) -> tuple[Matrix, bool]:
    """One trained factor, of the base's shape, and whether it differs from the base."""
    region = update.slices[name]
    delta, part = np.empty(region.shape, np.float32), np.empty(region.shape, np.float32)
    update.file.read(name, 0, delta.reshape(-1))
    region.cut(base, part)
    full = np.zeros(base.shape)
    for whole, piece in region.rectangles():
        full[whole] = part[piece].astype(np.float64) + delta[piece]
    return full, bool(delta.any())


def _mask(region: Region, axis: int, size: int) -> NDArray[np.bool_]:
    mask = np.zeros(size, np.bool_)
    for part in region.axes[axis]:
        mask[part.start : part.stop] = True
    return mask
