"""`coordinator release …`: creates the releases that may serve inference, shows them, and signs them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from coordinator.commands.options import (
    MAX_NUMBER,
    KeyFile,
    Passphrase,
    StateDir,
    TaskName,
    a_number,
    known_store,
    read_key_file,
    typist,
)
from edge_sdk.command import AsJson
from edge_sdk.protocol.releases import Precision

release_app = typer.Typer(no_args_is_help=True, help="Create, sign and approve releases: signed models for inference.")
ReleaseNumber = Annotated[int, typer.Argument(max=MAX_NUMBER, help="Number of the release.")]


@release_app.command("create")
def create_release(
    task: TaskName,
    state_dir: StateDir,
    version: Annotated[
        int | None, typer.Option(min=0, max=MAX_NUMBER, help="Version of the model; default: the newest.")
    ] = None,
    group: Annotated[
        list[str] | None, typer.Option(help="Group whose devices may run it, repeatable; default: all.")
    ] = None,
    precision: Annotated[
        list[Precision] | None, typer.Option(help="Precision to export in, repeatable; default: int8.")
    ] = None,
    days: Annotated[float, typer.Option(min=0.01, max=36500, callback=a_number, help="Days until it expires.")] = 365.0,
    fleet: Annotated[
        str | None, typer.Option(help="Name of the fleet; default: as set by `fleet init`, or default.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads for evaluation.")] = 2,
    as_json: AsJson = False,
) -> None:
    """Export a version for every known class of device, and evaluate each export on the task's test examples."""
    from coordinator.delivery.creating import Wanted, create_release
    from coordinator.listing import export_rows, show
    from coordinator.store.opening import staying

    store = known_store(state_dir)
    wanted = Wanted(task, version, tuple(group or ()), tuple(precision or (Precision.INT8,)), days, fleet, threads)
    with staying(state_dir):  # it takes minutes, and is then recorded in the store that was opened
        number = create_release(
            store, state_dir, wanted, time.time(), typist(), lambda text: typer.echo(text, err=True)
        )
    show(export_rows(store, number), as_json=as_json)
    typer.echo(f"release {number} needs signatures: `coordinator release approve {number}`", err=True)


@release_app.command("list")
def list_releases(state_dir: StateDir, as_json: AsJson = False) -> None:
    """List every release with its version, size, accuracy and signatures."""
    from coordinator.listing import release_rows, show

    show(release_rows(known_store(state_dir)), as_json=as_json)


@release_app.command("show")
def show_release(
    release: ReleaseNumber,
    state_dir: StateDir,
    manifest_file: Annotated[Path | None, typer.Option(help="File to write for signing on another machine.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show every export of a release with its accuracy, size and memory; or write a file to be signed elsewhere."""
    from coordinator.delivery.approving import write_manifest
    from coordinator.listing import export_rows, show

    store = known_store(state_dir)
    show(export_rows(store, release), as_json=as_json)
    if manifest_file is not None:
        write_manifest(store, release, manifest_file)
        typer.echo(f"sign {manifest_file} with `coordinator release sign {manifest_file} --key FILE`", err=True)


@release_app.command("sign")
def sign_release(
    file: Annotated[Path, typer.Argument(help="File that `release show --manifest-file` has written.")],
    key: KeyFile,
    passphrase_file: Passphrase = None,
) -> None:
    """Sign a release file; the machine needs the key and nothing else of the coordinator."""
    from coordinator.delivery.approving import sign_manifest

    manifest, out = sign_manifest(file, read_key_file(key, passphrase_file))
    for export in manifest.exports:
        typer.echo(f"{export.name}: {export.accuracy:.1%} accuracy, {export.size_bytes / 2**20:.1f} MiB")
    typer.echo(f"release {manifest.release} of {manifest.task} is signed in {out}")


@release_app.command("approve")
def approve_release(
    release: ReleaseNumber,
    state_dir: StateDir,
    key: Annotated[list[Path] | None, typer.Option(help="Secret key to sign with, repeatable.")] = None,
    passphrase_file: Passphrase = None,
    signature: Annotated[
        list[Path] | None, typer.Option(help="Signature file that `release sign` has written, repeatable.")
    ] = None,
) -> None:
    """Add signatures to a release: by keys, from files, or by default by the coordinator's own release key."""
    from coordinator.delivery.approving import approve, known_release, read_signed, signatures_by, signatures_in
    from coordinator.delivery.keys import held_keys
    from edge_sdk.protocol.signing import Role

    given = [each for file in signature or () for each in signatures_in(read_signed(file))]
    keys = [read_key_file(file, passphrase_file) for file in key or ()]
    if not given and not keys:
        keys = list(held_keys(state_dir, Role.RELEASE))
    with known_store(state_dir).transaction() as tx:
        given += signatures_by(known_release(tx, release), keys)
        have, needed = approve(tx, release, given, time.time(), typist())
    state = "approved" if have >= needed else "not approved yet"
    typer.echo(f"release {release} has {have} of the {needed} signatures that it needs: {state}")
