"""`coordinator broker …`: runs the embedded broker for first tries, and writes the configuration of a real one."""

from __future__ import annotations

import signal
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from coordinator.commands.options import StateDir, known_store
from coordinator.config import STATE_DIR_VARIABLE
from edge_sdk.errors import ConfigurationError

broker_app = typer.Typer(invoke_without_command=True)


class Kind(str, Enum):
    """The brokers for which a configuration can be written."""

    MOSQUITTO = "mosquitto"


@broker_app.callback()
def broker(
    context: typer.Context,
    state_dir: Annotated[
        Path | None, typer.Option(envvar=STATE_DIR_VARIABLE, help="Folder for the broker's configuration and log.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0: any free port.")] = 1883,
) -> None:
    """Run the embedded MQTT broker on this machine until interrupted; not for production."""
    if context.invoked_subcommand is not None:
        return
    if state_dir is None:
        raise ConfigurationError(f"--state-dir is not given: use it, or set {STATE_DIR_VARIABLE}")
    from coordinator.broker import EmbeddedBroker

    with EmbeddedBroker(state_dir, port) as running:
        typer.echo(f"broker at {running.address}; Ctrl-C ends it")
        signal.sigwait({signal.SIGINT, signal.SIGTERM})


@broker_app.command("config")
def write_config(
    kind: Annotated[Kind, typer.Argument(help="The broker to configure.")],
    state_dir: StateDir,
    folder: Annotated[
        Path | None,
        typer.Option("--dir", help="Folder for the broker's files, remembered; default: broker in the state folder."),
    ] = None,
    user: Annotated[
        str | None,
        typer.Option(
            help="User that the broker runs as if root starts it; default: you, or mosquitto if you are root."
        ),
    ] = None,
    bind: Annotated[str | None, typer.Option(help="Only address to listen on; default: all.")] = None,
    reload: Annotated[
        str | None,
        typer.Option(
            help="Command that makes it reload its files, e.g. 'systemctl reload mosquitto'; default: SIGHUP."
        ),
    ] = None,
) -> None:
    """Write a broker configuration and certificate; it admits only the fleet's devices, each to its own topics."""
    from coordinator.fleet.folder import keep_settings, known_fleet
    from coordinator.fleet.mosquitto import write_configuration

    fleet, changes = known_fleet(state_dir), dict[str, object]()
    if folder is not None:
        changes["broker_dir"] = str(folder.absolute())
    if reload is not None:
        changes["reload"] = reload
    file = write_configuration(known_store(state_dir), keep_settings(fleet, **changes), user, bind)
    typer.echo(f"{kind.value} -c {file}")
