"""Options that several commands share, and how commands open the store and read keys."""

from __future__ import annotations

import math
import os
import pwd
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coordinator.config import STATE_DIR_VARIABLE
from edge_sdk.errors import ConfigurationError
from edge_sdk.logs import LogFormat
from edge_sdk.settings_help import ABOUT

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from coordinator.store.database import Store

MAX_NUMBER = 2**31 - 1
"""The largest number of a version, a release or a rollout, as the store counts them."""
StateDir = Annotated[
    Path, typer.Option(envvar=STATE_DIR_VARIABLE, help="The coordinator's state folder: its store, blobs and keys.")
]
TaskName = Annotated[str, typer.Argument(help="Name of the task.")]
Log = Annotated[LogFormat, typer.Option("--log-format", help=ABOUT["log_format"])]
KeyFile = Annotated[Path, typer.Option("--key", help="Secret key to sign with.")]
Passphrase = Annotated[Path | None, typer.Option(help="File with the passphrase of the encrypted keys.")]


def a_number(value: float | None) -> float | None:
    """Refuse ``nan``, which passes every ``min`` and ``max``; for the ``callback`` of an option."""
    if value is not None and math.isnan(value):
        raise typer.BadParameter(f"{value} is not a number")
    return value


def typist() -> str:
    """The name that the audit log records for changes on the command line."""
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        name = f"user {os.getuid()}"
    return f"{name}, command line"


def known_store(state_dir: Path) -> Store:
    """Open the store of a folder that exists; a mistyped one would be a new, empty fleet.

    Raises ``ConfigurationError`` if there is no such folder.
    """
    from coordinator.store.opening import open_store

    if not state_dir.exists():
        raise ConfigurationError(f"there is no state folder {state_dir}: give the one of `coordinator serve`")
    return open_store(state_dir)


def read_key_file(path: Path, passphrase_file: Path | None) -> Ed25519PrivateKey:
    """:func:`coordinator.delivery.keys.read_key`, with the passphrase read from a file."""
    from coordinator.delivery.keys import read_key
    from edge_sdk.security.secrets import read_secret

    return read_key(path, None if passphrase_file is None else read_secret(passphrase_file))
