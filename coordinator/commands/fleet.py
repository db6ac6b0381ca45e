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
        list[str] | None,
        typer.Option(help="Name or address of this machine for devices; several are one machine's."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="The fleet's name; default at first.")] = None,
    broker: Annotated[
        str | None,
        typer.Option(help="mqtts://host:port of the broker for devices; port 8883 of the first host at first."),
    ] = None,
    api_port: Annotated[int | None, typer.Option(min=1, max=65535, help="Where devices enrol; 8080 at first.")] = None,
    certificate_days: Annotated[
        float | None,
        typer.Option(min=0.0001, max=3650, help="For how long a device's certificate is good; 365 at first."),
    ] = None,
    is_open: Annotated[
        bool | None,
        typer.Option(
            "--open/--no-open", help="For a first try: tokens are passwords, and devices have no certificates."
        ),
    ] = None,
    allow_plaintext: Annotated[
        bool | None,
        typer.Option(
            "--allow-plaintext/--no-allow-plaintext",
            help="An open fleet's broker may be mqtt:// to other machines.",
        ),
    ] = None,
) -> None:
    """Make the fleet's certificate authority; once more, change what is named. The rest and the authority stay."""
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
    typer.echo(f"authority {fleet.authority.fingerprint} is in {state_dir}/ca: keep it secret, and in your backups")


@fleet_app.command("show")
def show_fleet(state_dir: StateDir, as_json: AsJson = False) -> None:
    """What devices are told, and the digest of the authority that they trust."""
    from coordinator.fleet.folder import known_fleet
    from coordinator.listing import fleet_rows, show

    show(fleet_rows(known_fleet(state_dir)), as_json=as_json)
