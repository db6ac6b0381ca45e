"""The graph that a device or the coordinator runs, and the file that is released to devices."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import onnx
import onnx_ir as ir
import onnxruntime
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxscript import optimizer

from coordinator.models.merging import graph_parameters
from coordinator.models.stitching import stitch
from coordinator.models.templates import Templates
from edge_sdk.elastic.slicing import Array
from edge_sdk.elastic.submodel import Submodel
from edge_sdk.protocol.graphs import LOGITS
from edge_sdk.protocol.releases import Precision

_RUNTIMES = (((9, 20), "1.17"), ((10, 21), "1.18"), ((10, 22), "1.20"), ((11, 23), "1.22"))
"""The newest IR version and operator set that each onnxruntime takes, by its table of compatibility."""


def inference_graph(templates: Templates, submodel: Submodel) -> onnx.ModelProto:
    """The graph of the forward pass: the model's inputs and the parameters -> ``logits``.

    Raises ``ConfigurationError`` where the submodel asks for more than the architecture has.
    """
    submodel.check(templates.architecture)
    return stitch(templates, submodel.layers, lambda output: output == LOGITS)


def release_graph(
    templates: Templates, submodel: Submodel, parameters: Mapping[str, Array], precision: Precision
) -> bytes:
    """A self-contained model file: the model's inputs -> ``logits``, with the weights inside.

    ``parameters`` are the full model's; the submodel is cut out. In int8, weights and embeddings have one scale per
    channel, and activations are quantised as they come: about a quarter of the size. In fp16, all but the inputs and
    the logits is half as large; a processor without such arithmetic computes in fp32. The input says the shape of a
    window or image, to which a device brings its own.
    Raises ``ConfigurationError`` where the submodel asks for more than the architecture has.
    """
    part = graph_parameters(templates, submodel, parameters)
    whole = _with_weights(inference_graph(templates, submodel), part)
    model = _fold(_with_input_shape(whole, templates.architecture.input_shape))
    if precision is Precision.INT8:
        return _quantised(model)
    return (_halved(model) if precision is Precision.FP16 else model).SerializeToString()


def min_onnxruntime(model: bytes) -> tuple[int, str]:
    """The operator set of a model file, and the oldest onnxruntime that can run it."""
    proto = onnx.load_model_from_string(model)
    opset = next(each.version for each in proto.opset_import if not each.domain)
    needed = [
        version for (ir_version, known), version in _RUNTIMES if proto.ir_version <= ir_version and opset <= known
    ]
    return opset, needed[0] if needed else onnxruntime.__version__


def _with_weights(model: onnx.ModelProto, parameters: Mapping[str, Array]) -> onnx.ModelProto:
    """Turn every input that is a parameter into an initializer."""
    inputs = list(model.graph.input)
    weights = [onnx.numpy_helper.from_array(parameters[v.name], v.name) for v in inputs if v.name in parameters]
    model.graph.initializer.extend(weights)
    del model.graph.input[:]
    model.graph.input.extend(value for value in inputs if value.name not in parameters)
    return model


def _with_input_shape(model: onnx.ModelProto, shape: tuple[int, ...]) -> onnx.ModelProto:
    """One example's ``shape``, empty for texts, whose number of tokens stays free; so does the batch."""
    for dim, size in zip(model.graph.input[0].type.tensor_type.shape.dim[1:], shape, strict=False):
        dim.dim_value = size
    return model


def _fold(model: onnx.ModelProto) -> onnx.ModelProto:
    """Compute what is constant now, above all the transposed weights, which only then count as weights to quantise."""
    graph = ir.from_proto(model)
    any_size = 1 << 40
    optimizer.optimize(graph, input_size_limit=any_size, output_size_limit=any_size)
    return ir.to_proto(graph)


def _halved(model: onnx.ModelProto) -> onnx.ModelProto:
    from onnxruntime.transformers.float16 import convert_float_to_float16  # noqa: PLC0415 - seldom asked for

    del model.graph.value_info[:]
    return convert_float_to_float16(model, keep_io_types=True)


def _quantised(model: onnx.ModelProto) -> bytes:
    # The optimizer's shapes are partly symbolic, and the quantiser's own inference rejects those that it cannot equate.
    del model.graph.value_info[:]
    # Says that the model was pre-processed; otherwise onnxruntime advises it through the root logger.
    model.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        quantize_dynamic(model, path, weight_type=QuantType.QInt8, per_channel=True)
        return path.read_bytes()
