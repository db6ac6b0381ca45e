"""How a release goes out: to whom first, and what has to be seen before it goes to more."""

from __future__ import annotations

from typing import Annotated

import msgspec

from edge_sdk.protocol.messages import Text
from edge_sdk.protocol.releases import Trial

_Threshold = Annotated[float, msgspec.Meta(gt=0, le=1)]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """``stages`` are shares of all devices (``10%``, which those of ``1%`` are among) or names of groups.

    The next stage opens once ``success_share`` of the present one is healthy. The rollout halts once ``error_share`` of
    a stage has failed, or so many that it cannot succeed any more. A device that says nothing for ``health_interval_s``
    after it was told, or began its ``trial``, has failed; a coordinator that starts counts from then on.
    """

    stages: Annotated[tuple[Text, ...], msgspec.Meta(min_length=1, max_length=32)] = ("100%",)
    success_share: _Threshold = 0.9
    error_share: _Threshold = 0.1
    health_interval_s: Annotated[float, msgspec.Meta(gt=0, le=1e9)] = 3600.0
    trial: Trial = Trial()
