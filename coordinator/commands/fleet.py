"""`coordinator fleet …`: the authority that names the fleet's devices, and where they find it."""

from __future__ import annotations

from typing import Annotated

import typer

from coordinator.commands.options import StateDir, a_number
from edge_sdk.command import AsJson

fleet_app = typer.Typer(no_args_is_help=True, help="Set up how devices join the fleet, and where they find it.")


@fleet_app.command("init")
def init(
    state_dir: StateDir,
    host: Annotated[
        list[str] | None,
        typer.Option(help="Name or address at which devices reach this machine; repeat it for several."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the fleet; at first: default.")] = None,
    broker: Annotated[
        str | None,
        typer.Option(help="Address of the broker for devices; at first: port 8883 of the first host."),
    ] = None,
    api_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port of the API, where devices enrol; at first: 8080.")
    ] = None,
    certificate_days: Annotated[
        float | None,
        typer.Option(
            min=0.0001,
            max=3650,
            callback=a_number,
            help="Days for which a device's certificate is valid; at first: 365.",
        ),
    ] = None,
    is_open: Annotated[
        bool | None,
        typer.Option(
            "--open/--no-open", help="An open fleet: devices log in with a token as password, and have no certificates."
        ),
    ] = None,
    allow_plaintext: Annotated[
        bool | None,
        typer.Option(
            "--allow-plaintext/--no-allow-plaintext",
            help="Allow mqtt:// (no TLS) between machines in an open fleet.",
        ),
    ] = None,
) -> None:
    """Create the fleet's certificate authority (CA). Run again, it keeps the CA and changes only the given options."""
    from coordinator.fleet.folder import say_of_fleet

    fleet = say_of_fleet(
        state_dir,
        hosts=tuple(host) if host else None,
        name=name,
        broker=broker,
        api_port=api_port,
        certificate_days=certificate_days,
        is_open=is_open,
        allow_plaintext=allow_plaintext,
    )
    typer.echo(f"the CA {fleet.authority.fingerprint} is in {state_dir}/ca: keep it secret, and back it up")


@fleet_app.command("show")
def show_fleet(state_dir: StateDir, as_json: AsJson = False) -> None:
    """Show the fleet's settings, and the fingerprint of the CA that devices trust."""
    from coordinator.fleet.folder import known_fleet
    from coordinator.listing import fleet_rows, show

    show(fleet_rows(known_fleet(state_dir)), as_json=as_json)
