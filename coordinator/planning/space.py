"""The submodels that a task chooses from: a chain from the smallest to the whole model, each contained in the next.

1. Milestones: if the space is elastic in depth, first ever more layers at the smallest width; then one more head in
   every layer at a time, with the same share of the neurons and of the adapters' rank.
2. Where a milestone costs much more than the one before it, intermediate steps: layer by layer, the most salient first,
   add the head, and then the neurons in a few parts.

Costs rise along the chain, so the largest submodel within a budget is found by bisection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import msgspec

from edge_sdk.elastic.submodel import Architecture, Submodel

_FINENESS = 0.9
_NEURON_PARTS = 4
CostsOf = Callable[[Submodel], tuple[int, ...]]


class Space(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """In what a task's submodels differ: ``width`` (heads and FFN neurons), ``depth`` and the adapters' ``rank``.

    Without ``width`` and ``depth`` every device trains the whole model. With ``is_rolling`` the window of heads and
    neurons moves with every round, so that narrow submodels train all of them in turn (FedRolex, arXiv 2212.01548).
    """

    width: bool = True
    depth: bool = False
    rank: bool = True
    is_rolling: bool = False


def chain(space: Space, architecture: Architecture, ranking: Sequence[int], costs_of: CostsOf) -> list[Submodel]:
    """The milestones, and what keeps each cost above nine tenths of the next where the model can be cut so finely.

    ``ranking`` has the layers by falling salience.
    """
    steps = milestones(space, architecture, ranking)
    found = steps[:1]
    for upper in steps[1:]:
        found += _refined(found[-1], upper, architecture, ranking, costs_of)
    return found


def milestones(space: Space, architecture: Architecture, ranking: Sequence[int]) -> list[Submodel]:
    """The coarse steps of the chain."""
    widths = range(1, architecture.heads + 1) if space.width else (architecture.heads,)
    depths = [*_depths(architecture, ranking)] if space.depth else []
    every = tuple(range(architecture.layers))
    return [
        *(_even(space, architecture, layers, widths[0]) for layers in depths),
        *(_even(space, architecture, every, heads) for heads in widths),
    ]


def rolled(submodel: Submodel, architecture: Architecture, round_number: int) -> Submodel:
    """The window of the same size that ``submodel`` is in a round, counted from 1; a whole width stays as it is.

    It moves by one head a round and by a head's share of the neurons, around the end (FedRolex, arXiv 2212.01548,
    section 3.2), so that no unit waits for much longer than as many rounds as there are heads.
    """
    passed, share = round_number - 1, max(1, architecture.ffn // architecture.heads)
    return replace(
        submodel,
        first_head=passed % architecture.heads if min(submodel.heads) < architecture.heads else 0,
        first_neuron=passed * share % architecture.ffn if min(submodel.ffn) < architecture.ffn else 0,
    )


def spread(submodel: Submodel, architecture: Architecture, covered: Sequence[float]) -> Submodel:
    """The submodel of the same cost whose wider layers are those that were ``covered`` least, by layer, so far.

    Layers are alike in cost, so it is free to choose which of them are wide. Equal ones stay as they are.
    """
    heads, ffn = list(submodel.heads), list(submodel.ffn)
    for stack in architecture.stacks:
        places = [place for place, layer in enumerate(submodel.layers) if layer in stack]
        widths = sorted(((heads[place], ffn[place]) for place in places), reverse=True)
        if covered:
            places.sort(key=lambda place: (covered[submodel.layers[place]], -heads[place], -ffn[place]))
            for place, (head_count, neurons) in zip(places, widths, strict=True):
                heads[place], ffn[place] = head_count, neurons
    return replace(submodel, heads=tuple(heads), ffn=tuple(ffn))


def _depths(architecture: Architecture, ranking: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """The best layers, in the order in which they run, one more each time; every stack keeps one."""
    first = [next(layer for layer in ranking if layer in stack) for stack in architecture.stacks]
    order = [*first, *(layer for layer in ranking if layer not in first)]
    for count in range(len(first), architecture.layers):
        yield tuple(sorted(order[:count]))


def _even(space: Space, architecture: Architecture, layers: tuple[int, ...], heads: int) -> Submodel:
    """The same share of all units in ``layers``, of which there is at least one of each."""
    count, ffn = len(layers), max(1, architecture.ffn * heads // architecture.heads)
    most = architecture.adapter_rank
    rank = max(min(1, most), most * heads // architecture.heads) if space.rank else most
    return Submodel(layers, (heads,) * count, (ffn,) * count, rank)


def _refined(
    lower: Submodel, upper: Submodel, architecture: Architecture, ranking: Sequence[int], costs_of: CostsOf
) -> list[Submodel]:
    """What follows ``lower`` up to ``upper``, as few as are fine enough."""
    if lower.layers != upper.layers:
        return [upper]
    kept, last = list[Submodel](), costs_of(lower)
    waiting, waiting_costs = lower, last
    for step in _between(lower, upper, architecture, ranking):
        costs = costs_of(step)
        is_coarse = any(old < _FINENESS * new for old, new in zip(last, costs, strict=True))
        if is_coarse and waiting_costs != last:
            kept.append(waiting)
            last = waiting_costs
        waiting, waiting_costs = step, costs
    return [*kept, upper]


def _between(
    lower: Submodel, upper: Submodel, architecture: Architecture, ranking: Sequence[int]
) -> Iterator[Submodel]:
    """From ``lower``, without it, to ``upper``, of the same layers, in the finest steps."""
    heads, ffn = list(lower.heads), list(lower.ffn)
    for group in _groups(upper, architecture, ranking):
        for place in group:
            heads[place] = upper.heads[place]
        yield replace(upper, heads=tuple(heads), ffn=tuple(ffn))
        for place in group:
            for part in range(1, _NEURON_PARTS + 1):
                ffn[place] = lower.ffn[place] + (upper.ffn[place] - lower.ffn[place]) * part // _NEURON_PARTS
                yield replace(upper, heads=tuple(heads), ffn=tuple(ffn))


def _groups(submodel: Submodel, architecture: Architecture, ranking: Sequence[int]) -> list[list[int]]:
    """The places of the layers whose heads grow together: one each, but a stack of an encoder-decoder, best first."""
    places = [submodel.layers.index(layer) for layer in ranking if layer in submodel.layers]
    if not architecture.encoder_layers:
        return [[place] for place in places]
    return [[place for place in places if submodel.layers[place] in stack] for stack in architecture.stacks]
