"""`coordinator device …`: who is there, who may come, and who must go."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from coordinator.commands.options import AsJson, StateDir, open_store, typist

device_app = typer.Typer(no_args_is_help=True, help="Who is there, who may come, and who must go.")
DeviceId = Annotated[str, typer.Argument(help="The device's id.")]


@device_app.command("list")
def list_devices(state_dir: StateDir, as_json: AsJson = False) -> None:
    """Every device that has ever enrolled or said hello, as it last said that it is; --json tells more."""
    from coordinator.listing import device_rows, show, show_devices

    rows = device_rows(open_store(state_dir), time.time())
    if as_json:
        show(rows, as_json=True)
    else:
        show_devices(rows)


@device_app.command("group")
def group_device(
    device: DeviceId,
    group: Annotated[str, typer.Argument(help="A name of a-z, 0-9 and '-'; it need not exist yet.")],
    state_dir: StateDir,
) -> None:
    """Put a device into a group, out of the one that it was in; tasks and releases choose devices by group."""
    from coordinator.fleet.groups import put_into_group

    put_into_group(open_store(state_dir), device, group, time.time(), typist())
    typer.echo(f"{device} is in group {group}")


@device_app.command("token")
def make_enrolment_token(
    state_dir: StateDir,
    device: Annotated[str | None, typer.Option(help="The only device that it is for; else any that is new.")] = None,
    group: Annotated[str | None, typer.Option(help="Where the device is put; else it stays where it is.")] = None,
    hours: Annotated[
        float | None, typer.Option(min=0.01, max=8760, help="Until a one-time token expires; default: 24.")
    ] = None,
) -> None:
    """Print a one-time token to enrol a device with; beside it, apart from the token, what to type on the device.

    In an open fleet it is the device's password at the broker, good until another is made or the device is revoked.
    """
    from coordinator.fleet.folder import known_fleet
    from coordinator.fleet.joining import new_token

    fleet, now_s = known_fleet(state_dir), time.time()
    wanted = {"device": device, "group": group}
    secret, line = new_token(open_store(state_dir), fleet, **wanted, hours=hours, now_s=now_s, who=typist())
    typer.echo("on the device, with the token in a file that nobody else can read:", err=True)
    typer.echo(f"  {line}", err=True)
    typer.echo(secret)


@device_app.command("tokens")
def list_enrolment_tokens(state_dir: StateDir, as_json: AsJson = False) -> None:
    """Every one-time token without its secret, oldest first, and who has used it."""
    from coordinator.fleet.folder import open_fleet
    from coordinator.fleet.joining import unlisted
    from coordinator.listing import enrolment_rows, show

    why = unlisted(open_fleet(state_dir))
    if why is not None:
        typer.echo(why, err=True)
    show(enrolment_rows(open_store(state_dir)), as_json=as_json)


@device_app.command("withdraw")
def withdraw_enrolment_token(
    token: Annotated[str, typer.Argument(help="The token's id, as `device tokens` shows it.")], state_dir: StateDir
) -> None:
    """A token that was not used lets nobody in any more."""
    from coordinator.fleet.enrolment import withdraw_enrolment

    withdraw_enrolment(open_store(state_dir), token, time.time(), typist())


@device_app.command("certificates")
def list_certificates(device: DeviceId, state_dir: StateDir, as_json: AsJson = False) -> None:
    """Every certificate that a device has had, oldest first."""
    from coordinator.listing import certificate_rows, show

    show(certificate_rows(open_store(state_dir), device), as_json=as_json)


@device_app.command("revoke")
def revoke_device(device: DeviceId, state_dir: StateDir) -> None:
    """Hear a device no more, count nothing of it that is not aggregated yet, and have the broker end its session.

    Ends with 4 where the broker could not be seen to refuse it; then the rest holds, and this may be typed again.
    """
    from coordinator.fleet.cutting import cut_off
    from coordinator.fleet.folder import open_fleet
    from coordinator.fleet.revocation import revoke_device

    store, fleet = open_store(state_dir), open_fleet(state_dir)
    revoke_device(store, device, time.time(), typist())
    if fleet is None:
        typer.echo(f"{device} is not heard any more; this fleet has no authority, so its broker lets it in as before")
        return
    took_s = cut_off(store, fleet, device)
    typer.echo(f"{device} is revoked; within {took_s:.1f} s its broker refused it, and has ended its session")
