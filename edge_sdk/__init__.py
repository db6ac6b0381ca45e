"""What runs on a device, and the contract that the coordinator speaks too.

    from edge_sdk import Agent

    agent = Agent(device="pi-5", broker="mqtt://127.0.0.1:1883", examples=[("cheap pills", "spam"), ...])
    agent.start()
    agent.predict(["is this spam?"])

Public names are loaded on first use (PEP 562), so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge_sdk.agent.supervisor import AgentStatus
    from edge_sdk.config import AgentConfig
    from edge_sdk.data.examples import ArrayExamples, PairedTexts, PlainTexts, TaggedExamples, TextExamples
    from edge_sdk.data.files import read_examples
    from edge_sdk.device.policy import Policy
    from edge_sdk.errors import RaffmError
    from edge_sdk.inference.engine import Prediction
    from edge_sdk.profile import DeviceProfile, load_profile
    from edge_sdk.sdk import Agent

__version__ = "0.1.0"

# onnxruntime from 1.29 on reports to Microsoft what it runs and where, and asks for this before it is first imported
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_HOMES = {
    "Agent": "edge_sdk.sdk",
    "AgentConfig": "edge_sdk.config",
    "AgentStatus": "edge_sdk.agent.supervisor",
    "ArrayExamples": "edge_sdk.data.examples",
    "DeviceProfile": "edge_sdk.profile",
    "PairedTexts": "edge_sdk.data.examples",
    "PlainTexts": "edge_sdk.data.examples",
    "Policy": "edge_sdk.device.policy",
    "Prediction": "edge_sdk.inference.engine",
    "RaffmError": "edge_sdk.errors",
    "TaggedExamples": "edge_sdk.data.examples",
    "TextExamples": "edge_sdk.data.examples",
    "load_profile": "edge_sdk.profile",
    "read_examples": "edge_sdk.data.files",
}

__all__ = [
    "Agent",
    "AgentConfig",
    "AgentStatus",
    "ArrayExamples",
    "DeviceProfile",
    "PairedTexts",
    "PlainTexts",
    "Policy",
    "Prediction",
    "RaffmError",
    "TaggedExamples",
    "TextExamples",
    "load_profile",
    "read_examples",
]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'edge_sdk' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
