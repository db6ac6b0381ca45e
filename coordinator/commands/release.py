"""`coordinator release …`: creates the releases that may serve inference, shows them, and signs them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from coordinator.commands.options import AsJson, KeyFile, Passphrase, StateDir, TaskName, open_store, typist
from edge_sdk.protocol.releases import Precision

release_app = typer.Typer(no_args_is_help=True, help="What may serve inference.")
ReleaseNumber = Annotated[int, typer.Argument(help="The release's number.")]


@release_app.command("create")
def create_release(
    task: TaskName,
    state_dir: StateDir,
    version: Annotated[int | None, typer.Option(min=0, help="Of the model; the newest if not named.")] = None,
    group: Annotated[list[str] | None, typer.Option(help="Whose devices may run it; all if none is named.")] = None,
    precision: Annotated[list[Precision] | None, typer.Option(help="Of exports; int8 if none is named.")] = None,
    days: Annotated[float, typer.Option(min=0.01, max=36500, help="Until it expires.")] = 365.0,
    fleet: Annotated[str, typer.Option(help="The fleet's name.")] = "default",
    threads: Annotated[int, typer.Option(min=1, help="For evaluation.")] = 2,
    as_json: AsJson = False,
) -> None:
    """Export a version for every class of device that is known, and run each file on the task's test examples."""
    from coordinator.delivery.creating import Wanted, create_release
    from coordinator.listing import export_rows, show

    store = open_store(state_dir)
    wanted = Wanted(task, version, tuple(group or ()), tuple(precision or (Precision.INT8,)), days, fleet, threads)
    number = create_release(store, state_dir, wanted, time.time(), typist(), lambda text: typer.echo(text, err=True))
    show(export_rows(store, number), as_json=as_json)
    typer.echo(f"release {number} waits for its signatures: `coordinator release approve {number}`", err=True)


@release_app.command("list")
def list_releases(state_dir: StateDir, as_json: AsJson = False) -> None:
    """Every release: of which version, how large and good, who has signed."""
    from coordinator.listing import release_rows, show

    show(release_rows(open_store(state_dir)), as_json=as_json)


@release_app.command("show")
def show_release(
    release: ReleaseNumber,
    state_dir: StateDir,
    manifest_file: Annotated[Path | None, typer.Option(help="Write what is to be signed there.")] = None,
    as_json: AsJson = False,
) -> None:
    """One release: every export with its accuracy, size and memory; and a file to sign on another machine."""
    from coordinator.delivery.approving import write_manifest
    from coordinator.listing import export_rows, show

    store = open_store(state_dir)
    show(export_rows(store, release), as_json=as_json)
    if manifest_file is not None:
        write_manifest(store, release, manifest_file)
        typer.echo(f"sign {manifest_file} with `coordinator release sign {manifest_file} --key FILE`", err=True)


@release_app.command("sign")
def sign_release(
    file: Annotated[Path, typer.Argument(help="What `release show --manifest-file` has written.")],
    key: KeyFile,
    passphrase_file: Passphrase = None,
) -> None:
    """Sign a release on a machine that has the key and need have nothing else."""
    from coordinator.commands.options import read_key_file
    from coordinator.delivery.approving import sign_manifest

    manifest, out = sign_manifest(file, read_key_file(key, passphrase_file))
    for export in manifest.exports:
        typer.echo(f"{export.name}: {export.accuracy:.1%} right, {export.size_bytes / 2**20:.1f} MiB")
    typer.echo(f"release {manifest.release} of {manifest.task} is signed in {out}")


@release_app.command("approve")
def approve_release(
    release: ReleaseNumber,
    state_dir: StateDir,
    key: Annotated[list[Path] | None, typer.Option(help="Sign with this key.")] = None,
    passphrase_file: Passphrase = None,
    signature: Annotated[list[Path] | None, typer.Option(help="Add what `release sign` has written.")] = None,
) -> None:
    """Add signatures to a release: of keys, of files, or of the coordinator's own release key where it has one."""
    from coordinator.commands.options import read_key_file
    from coordinator.delivery.approving import approve, known_release, read_signed, signatures_by, signatures_in
    from coordinator.delivery.keys import held_keys
    from edge_sdk.protocol.signing import Role

    given = [each for file in signature or () for each in signatures_in(read_signed(file))]
    keys = [read_key_file(file, passphrase_file) for file in key or ()]
    if not given and not keys:
        keys = list(held_keys(state_dir, Role.RELEASE))
    with open_store(state_dir).transaction() as tx:
        given += signatures_by(known_release(tx, release), keys)
        have, needed = approve(tx, release, given, time.time(), typist())
    state = "approved" if have >= needed else "not approved yet"
    typer.echo(f"release {release} has {have} of the {needed} signatures that it takes: {state}")
