"""Torch modules of a foundation model or of one of its submodels: for calibration and as the reference in checks."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from coordinator.models.foundation import Foundation
from edge_sdk.elastic.slicing import Array, extract, slices_of
from edge_sdk.elastic.submodel import Submodel, full
from edge_sdk.modules.building import submodel_module


def torch_module(
    foundation: Foundation, submodel: Submodel | None = None, parameters: Mapping[str, Array] | None = None
) -> nn.Module:
    """``submodel`` (default: all) of the full model's ``parameters`` (default: the foundation's own), in eval mode.

    Raises ``ConfigurationError`` where the submodel asks for more than the model has.
    """
    submodel = submodel or full(foundation.architecture)
    parameters = foundation.parameters if parameters is None else parameters
    shapes = {name: values.shape for name, values in parameters.items()}
    part = extract(parameters, slices_of(submodel, foundation.architecture, foundation.family, shapes))
    return submodel_module(foundation.config_json, foundation.architecture, submodel, part)
