"""Logit calibration: corrects a device's loss for its own mixture of labels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edge_sdk.elastic.slicing import Array


def logit_offset(label_counts: NDArray[np.int64]) -> Array:
    """The logarithm of this device's smoothed class prior, centred: float32 (labels,), or (0,) without labels.

    It is added to the logits in the loss only, so that a device with few classes does not make the model forget the
    others: logit adjustment (Menon et al. 2021, arXiv 2007.07314, eq. 10) with a device's own prior (FedLC, arXiv
    2209.00189). ``label_counts`` is int64 (labels,).
    """
    if not label_counts.size:
        return np.zeros(0, dtype=np.float32)
    log_prior = np.log((label_counts + 1) / (label_counts.sum() + len(label_counts)))
    return np.asarray(log_prior - log_prior.mean(), dtype=np.float32)
