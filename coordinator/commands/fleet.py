"""`coordinator fleet …`: the authority that names the fleet's devices, and where they find it."""

from __future__ import annotations

from typing import Annotated

import typer

from coordinator.commands.options import AsJson, StateDir

fleet_app = typer.Typer(no_args_is_help=True, help="The authority that names the fleet's devices.")


@fleet_app.command("init")
def init(
    state_dir: StateDir,
    host: Annotated[
        list[str], typer.Option(help="Name or address of this machine for devices; several are one machine's.")
    ],
    name: Annotated[str, typer.Option(help="The fleet's name.")] = "default",
    broker: Annotated[
        str | None,
        typer.Option(help="mqtts://host:port of the broker for devices; default: port 8883 of the first host."),
    ] = None,
    api_port: Annotated[int, typer.Option(min=1, max=65535, help="Where devices enrol.")] = 8080,
    certificate_days: Annotated[
        float, typer.Option(min=0.0001, max=3650, help="For how long a device's certificate is good.")
    ] = 365,
    is_open: Annotated[
        bool, typer.Option("--open", help="For a first try: tokens are passwords, and devices have no certificates.")
    ] = False,
    allow_plaintext: Annotated[
        bool, typer.Option("--allow-plaintext", help="An open fleet's broker may be mqtt:// to other machines.")
    ] = False,
) -> None:
    """Make the fleet's certificate authority; once more, change what is said of it. The authority stays."""
    from coordinator.fleet.folder import FleetSettings, init_fleet, open_fleet

    at = f"[{host[0]}]" if ":" in host[0] else host[0]
    known = open_fleet(state_dir)
    fleet = init_fleet(
        state_dir,
        FleetSettings(
            name=name,
            hosts=tuple(host),
            broker=broker or f"mqtts://{at}:8883",
            api_port=api_port,
            certificate_days=certificate_days,
            broker_dir=None if known is None else known.settings.broker_dir,
            reload=None if known is None else known.settings.reload,
            is_open=is_open,
            allow_plaintext=allow_plaintext,
        ),
    )
    typer.echo(f"authority {fleet.authority.fingerprint} is in {state_dir}/ca: keep it secret, and in your backups")


@fleet_app.command("show")
def show_fleet(state_dir: StateDir, as_json: AsJson = False) -> None:
    """What devices are told, and the digest of the authority that they trust."""
    from coordinator.fleet.folder import known_fleet
    from coordinator.listing import fleet_rows, show

    show(fleet_rows(known_fleet(state_dir)), as_json=as_json)
