"""An agent as a process that dies, or meets an error of the disk, at a named point; see :mod:`tests.support.crash`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec
import pytest

from edge_sdk.agent.supervisor import Supervisor
from edge_sdk.agent.uplink import Uplink
from edge_sdk.config import AgentConfig
from edge_sdk.data import read_examples
from edge_sdk.errors import RaffmError
from edge_sdk.inference.slots import Slots
from edge_sdk.protocol.messages import Chunk
from edge_sdk.storage.outbox import Outbox
from edge_sdk.training.process import TrainingProcess
from edge_sdk.transport.blob_folder import Partial
from tests.support.controls import CONTROLS
from tests.support.crash import Crash, Points


class Working(msgspec.Struct, frozen=True):
    """An agent called ``device`` on the broker at ``broker``, with the examples in ``data``."""

    device: str
    broker: str
    state_dir: str
    data: str
    root: str
    crash: Crash | None = None
    control: str = ""


def wrap_agent(points: Points) -> None:
    """Every place where an agent makes something durable, or begins something that a crash can cut short."""
    points.wrap(os, "fsync", lambda *_: "fsync")
    points.wrap(Path, "replace", lambda *_: "rename")
    points.wrap(Partial, "write", lambda *_: "chunk")
    points.wrap(TrainingProcess, "__init__", lambda *_: "start training")
    points.wrap(Outbox, "put", lambda *_: "put into outbox")
    points.wrap(Outbox, "resolve", lambda *_: "resolve in outbox")
    points.wrap(Outbox, "set_number", lambda _, name, __: f"keep {name}")
    points.wrap(Slots, "stage", lambda *_: "stage slot")
    points.wrap(Slots, "switch", lambda *_: "switch slot")
    points.wrap(Uplink, "resend", lambda *_: "send update")
    points.wrap(Uplink, "publish", lambda _, it: "send chunk" if isinstance(it, Chunk) else "")


def work(settings: Working) -> None:
    """Work until killed, or until a named error, whose exit code it ends with. It says what it says in its log."""
    folder = Path(settings.state_dir)
    with (folder / "log").open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    if settings.control:
        CONTROLS[settings.control](pytest.MonkeyPatch())
    wrap_agent(Points(settings.crash, folder / "points"))
    config = AgentConfig(
        device=settings.device,
        broker=settings.broker,
        state_dir=folder,
        root=Path(settings.root),
        held_out_share=0.3,
        ready_interval_s=0.2,
        resend_first_s=0.2,
        resend_max_s=0.5,
    )
    try:
        Supervisor(config, read_examples(Path(settings.data))).run()
    except RaffmError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(error.exit_code)
