"""`coordinator device …`: who is there."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from coordinator.commands.options import AsJson, StateDir, open_store, typist

device_app = typer.Typer(no_args_is_help=True, help="Who is there.")


@device_app.command("list")
def list_devices(state_dir: StateDir, as_json: AsJson = False) -> None:
    """Every device that has ever said hello, as it last said that it is; --json tells more."""
    from coordinator.listing import device_rows, show, show_devices

    rows = device_rows(open_store(state_dir), time.time())
    if as_json:
        show(rows, as_json=True)
    else:
        show_devices(rows)


@device_app.command("group")
def group_device(
    device: Annotated[str, typer.Argument(help="The device's id.")],
    group: Annotated[str, typer.Argument(help="A name of a-z, 0-9 and '-'; it need not exist yet.")],
    state_dir: StateDir,
) -> None:
    """Put a device into a group, out of the one that it was in; tasks and releases choose devices by group."""
    from coordinator.fleet.groups import put_into_group

    put_into_group(open_store(state_dir), device, group, time.time(), typist())
