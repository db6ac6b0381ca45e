"""What a submodel costs a device: parameters, bytes on the wire, FLOPs, and the peak resident memory of its process.

Counts are exact, see :mod:`.counts`. The memory model adds up what a process holds at its worst moment, see
:mod:`.runtimes`. It is fitted to measurements, and the benchmark ``cost_model`` compares it with others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from edge_sdk.elastic.counts import Counts
from edge_sdk.elastic.families import family_of
from edge_sdk.elastic.runtimes import FLOAT_BYTES, ONNX, RuntimeCost, Work
from edge_sdk.elastic.slicing import Shapes
from edge_sdk.elastic.submodel import Architecture, ModelTask, Submodel, TrainablePart

_FLOATS_PER_PREDICTED_LOGIT = 3  # float32, and float64 for the softmax
_BY_TOKEN = {ModelTask.TOKEN_CLASSIFICATION, *(task for task in ModelTask if task.generates)}
_WITH_OUTPUTS = (".lora_B.weight", ".lora_magnitude_vector.weight", ".ia3_l")
_ON_TEXT = _BY_TOKEN | {ModelTask.TEXT_CLASSIFICATION}


@dataclass(frozen=True, slots=True)
class CostModel:
    """The costs of any submodel of one model; computing one takes microseconds.

    ``everything`` counts all parameters, ``trained`` those of each trainable part, ``products`` the weights of layers
    and head that inputs are multiplied with, ``adapted`` the adapters' factors whose output is kept for the backward
    pass. ``embeddings`` is the number of parameters that are only looked up. With ``is_gated``, layers have a gate
    beside their up-projection.
    """

    architecture: Architecture
    is_gated: bool
    everything: Counts
    trained: Mapping[TrainablePart, Counts]
    products: Counts
    adapted: Counts
    embeddings: int

    @classmethod
    def of(cls, architecture: Architecture, shapes: Shapes) -> CostModel:
        """The cost model of a model whose parameters have ``shapes``, by name, at full width.

        Raises ``UnsupportedArchitectureError`` for a family that is not in the table.
        """
        family = family_of(architecture.family)

        def count(is_counted: Callable[[str], bool]) -> Counts:
            chosen = {name: shape for name, shape in shapes.items() if is_counted(name)}
            return Counts.of(architecture, family, chosen)

        is_tied = not any(name.startswith(family.head) for name in shapes)  # then the embeddings are the head
        tables = family.embeddings if architecture.task in _ON_TEXT else ()

        def is_looked_up(name: str) -> bool:
            return name.startswith(tables) and not (is_tied and shapes[name][0] == architecture.vocabulary)

        first = family.layer_prefix(0, architecture)
        return cls(
            architecture,
            sum(f"{first}{up}.weight" in shapes for up in family.stacks[0].up) > 1,
            count(lambda _: True),
            {part: count(partial(family.is_trainable, part=part)) for part in TrainablePart},
            count(lambda name: len(shapes[name]) == 2 and not is_looked_up(name)),
            count(lambda name: name.endswith(_WITH_OUTPUTS)),
            count(is_looked_up).around,
        )

    def parameter_count(self, submodel: Submodel) -> int:
        """All parameters of the submodel: embeddings, kept layers and head."""
        return self.everything.total(submodel)

    def trainable_count(self, submodel: Submodel, part: TrainablePart) -> int:
        """The parameters that a device which trains ``part`` changes and uploads."""
        return self.trained[part].total(submodel)

    def update_bytes(self, submodel: Submodel, part: TrainablePart) -> int:
        """The size of the trained parameters in float32, as they are sent to a device, without the file's header."""
        return FLOAT_BYTES * self.trainable_count(submodel, part)

    def training_flops(
        self,
        submodel: Submodel,
        part: TrainablePart,
        *,
        samples: int,
        max_tokens: int,
        nested: Sequence[Submodel] = (),
    ) -> int:
        """Floating-point operations, additions included, of training ``submodel`` and ``nested`` once on ``samples``.

        Each weight takes two operations per token in the forward pass, two for its input's gradient and two for its own
        (Kaplan et al. 2020, arXiv 2001.08361, section 2.1); attention scores come on top, and grow with the square of
        the length. A frozen weight has no gradient of its own, and below a head that is trained alone nothing runs
        backward. The first hidden states are not counted: they are looked up, or one small product.
        """
        tokens = self._tokens(max_tokens)
        return samples * sum(self._flops(trained, part, tokens) for trained in (submodel, *nested))

    def training_memory_bytes(
        self,
        submodel: Submodel,
        part: TrainablePart,
        *,
        batch_size: int,
        max_tokens: int,
        nested: Sequence[Submodel] = (),
        runtime: RuntimeCost = ONNX,
        moments: int = 2,
        is_summed: bool = False,
    ) -> int:
        """Peak resident memory of the process that trains ``part``, to be compared with its limit.

        ``nested`` are prefixes of ``submodel`` that are trained in the same step. The optimizer keeps ``moments``
        arrays of the trained part's size. ``is_summed``: a step sums the gradients of several batches, each of
        ``batch_size``.
        """
        tokens = self._tokens(max_tokens)
        work, *inner = (self._work(trained, part, batch_size, tokens, runtime) for trained in (submodel, *nested))
        return runtime.training_bytes(work, inner, moments=moments, is_summed=is_summed)

    def inference_memory_bytes(
        self, submodel: Submodel, *, max_tokens: int, quantised: bool, runtime: RuntimeCost = ONNX
    ) -> int:
        """Peak resident memory of a process that predicts one example at a time; ``quantised`` weights are int8."""
        tokens = self._tokens(max_tokens)
        widest = runtime.forward_share * max(self._activations(submodel, 1, tokens, runtime))
        running = widest + _FLOATS_PER_PREDICTED_LOGIT * self._logits(1, tokens)
        return runtime.predicting_bytes(self.parameter_count(submodel), self.embeddings, running, quantised=quantised)

    def _work(
        self, submodel: Submodel, part: TrainablePart, batch_size: int, tokens: int, runtime: RuntimeCost
    ) -> Work:
        trained = self.trainable_count(submodel, part)
        embedded = self.embeddings if part is TrainablePart.ALL else 0
        looked_up = self.embeddings - embedded
        activations = self._activations(submodel, batch_size, tokens, runtime)
        if part is TrainablePart.ADAPTERS:
            outputs = self.adapted.by_layer(replace(submodel, adapter_rank=1))
            activations = [
                runtime.frozen_share * values + batch_size * tokens * count
                for values, count in zip(activations, outputs, strict=True)
            ]
        if part is TrainablePart.HEAD:
            activations = [runtime.forward_share * max(activations)]
        return Work(
            trained,
            self.parameter_count(submodel) - trained - looked_up,
            looked_up,
            embedded,
            sum(self.everything.by_layer(submodel)),
            activations,
            self._logits(batch_size, tokens),
        )

    def _activations(self, submodel: Submodel, batch_size: int, tokens: int, runtime: RuntimeCost) -> list[float]:
        """The values that each layer keeps for its backward pass."""
        architecture = self.architecture
        kept = runtime.kept.get(architecture.family) or runtime.kept["gated" if self.is_gated else ""]
        query_heads = [architecture.group_size * heads for heads in submodel.heads]
        return [
            batch_size
            * tokens
            * (
                kept.hidden * architecture.hidden * (1 + attentions) / 2
                + kept.heads * heads * architecture.head_size * attentions
                + kept.ffn * ffn
                + kept.scores * heads * tokens * attentions
            )
            for heads, ffn, attentions in zip(query_heads, submodel.ffn, self._attentions(submodel), strict=True)
        ]

    def _attentions(self, submodel: Submodel) -> list[int]:
        """How many attention blocks each layer has: two in a decoder that reads an encoder's states, else one."""
        stacks = zip(family_of(self.architecture.family).stacks, self.architecture.stacks, strict=True)
        counts = {layer: len(stack.attentions) for stack, layers in stacks for layer in layers}
        return [counts[layer] for layer in submodel.layers]

    def _logits(self, batch_size: int, tokens: int) -> int:
        """The number of logits of a batch: labels or vocabulary, per example or per token, as the task demands."""
        architecture = self.architecture
        each = architecture.vocabulary if architecture.task.generates else architecture.labels
        return batch_size * each * (tokens if architecture.task in _BY_TOKEN else 1)

    def _flops(self, submodel: Submodel, part: TrainablePart, tokens: int) -> int:
        """The operations of training on one example."""
        architecture, passes = self.architecture, 1 if part is TrainablePart.HEAD else 2
        width = architecture.group_size * architecture.head_size
        scores = sum(
            4 * tokens * heads * width * attentions
            for heads, attentions in zip(submodel.heads, self._attentions(submodel), strict=True)
        )
        layers = passes * sum(self.products.by_layer(submodel)) + sum(self.trained[part].by_layer(submodel))
        head = 3 * self.products.around * (tokens if architecture.task in _BY_TOKEN else 1)
        return tokens * (2 * layers + (2 * passes - 1) * scores) + 2 * head

    def _tokens(self, max_tokens: int) -> int:
        """The tokens of one example: a text of full length, or the patches and class tokens of an image or window."""
        return max_tokens if self.architecture.task in _ON_TEXT else self.architecture.positions
