"""`coordinator device …`: who is there, who may come, and who must go."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from coordinator.commands.options import StateDir, a_number, known_store, typist
from edge_sdk.command import AsJson

device_app = typer.Typer(no_args_is_help=True, help="Enrol, group, list and revoke devices.")
DeviceId = Annotated[str, typer.Argument(help="Name of the device.")]


@device_app.command("list")
def list_devices(state_dir: StateDir, as_json: AsJson = False) -> None:
    """List every device that has ever enrolled or connected, with its last reported state; --json shows more."""
    from coordinator.listing import device_rows, show, show_devices

    rows = device_rows(known_store(state_dir), time.time())
    if as_json:
        show(rows, as_json=True)
    else:
        show_devices(rows)


@device_app.command("group")
def group_device(
    device: DeviceId,
    group: Annotated[str, typer.Argument(help="Name of the group: a-z, 0-9 and '-'; it need not exist yet.")],
    state_dir: StateDir,
) -> None:
    """Move a device to a group; tasks and releases choose devices by group."""
    from coordinator.fleet.groups import put_into_group

    put_into_group(known_store(state_dir), device, group, time.time(), typist())
    typer.echo(f"{device} is in group {group}")


@device_app.command("token")
def make_enrolment_token(
    state_dir: StateDir,
    device: Annotated[str | None, typer.Option(help="The device that may use the token; default: any new one.")] = None,
    group: Annotated[
        str | None, typer.Option(help="Group to put the device in; default: the one that it is in.")
    ] = None,
    hours: Annotated[
        float | None,
        typer.Option(min=0.01, max=8760, callback=a_number, help="Hours until a one-time token expires; default: 24."),
    ] = None,
) -> None:
    """Print a one-time enrolment token to standard output, and the command to type on the device to standard error.

    In an open fleet the token is the device's password at the broker, valid until it is replaced or the device revoked.
    """
    from coordinator.fleet.folder import known_fleet
    from coordinator.fleet.joining import new_token

    fleet, now_s = known_fleet(state_dir), time.time()
    wanted = {"device": device, "group": group}
    secret, line = new_token(known_store(state_dir), fleet, **wanted, hours=hours, now_s=now_s, who=typist())
    typer.echo("type on the device, with the token in a file that nobody else can read:", err=True)
    typer.echo(f"  {line}", err=True)
    typer.echo(secret)


@device_app.command("tokens")
def list_enrolment_tokens(state_dir: StateDir, as_json: AsJson = False) -> None:
    """List the enrolment tokens, oldest first, and which device used each; secrets are not shown."""
    from coordinator.fleet.folder import open_fleet
    from coordinator.fleet.joining import unlisted
    from coordinator.listing import enrolment_rows, show

    why = unlisted(open_fleet(state_dir))
    if why is not None:
        typer.echo(why, err=True)
    show(enrolment_rows(known_store(state_dir)), as_json=as_json)


@device_app.command("withdraw")
def withdraw_enrolment_token(
    token: Annotated[str, typer.Argument(help="Id of the token, as `device tokens` shows it.")], state_dir: StateDir
) -> None:
    """Withdraw an enrolment token that has not been used."""
    from coordinator.fleet.enrolment import withdraw_enrolment

    withdraw_enrolment(known_store(state_dir), token, time.time(), typist())


@device_app.command("certificates")
def list_certificates(device: DeviceId, state_dir: StateDir, as_json: AsJson = False) -> None:
    """List every certificate that a device has had, oldest first."""
    from coordinator.listing import certificate_rows, show

    show(certificate_rows(known_store(state_dir), device), as_json=as_json)


@device_app.command("revoke")
def revoke_device(device: DeviceId, state_dir: StateDir) -> None:
    """Revoke a device: ignore it, drop its updates from the open round, and have the broker end its session.

    Exit code 4 means that the broker was not seen to refuse the device. It is revoked all the same; run this again.
    """
    from coordinator.fleet.cutting import cut_off
    from coordinator.fleet.folder import open_fleet
    from coordinator.fleet.revocation import revoke_device

    store, fleet = known_store(state_dir), open_fleet(state_dir)
    revoke_device(store, device, time.time(), typist())
    if fleet is None:
        typer.echo(f"{device} is ignored from now on; this fleet has no authority, so its broker still admits it")
        return
    took_s = cut_off(store, fleet, device)
    typer.echo(f"{device} is revoked; its broker refused it and ended its session within {took_s:.1f} s")
