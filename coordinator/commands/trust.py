"""`coordinator key …` and `coordinator root …`: the keys whose signatures count."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from coordinator.commands.options import (
    KeyFile,
    Passphrase,
    StateDir,
    a_number,
    known_store,
    read_key_file,
    typist,
)
from edge_sdk.command import AsJson
from edge_sdk.errors import ConfigurationError

key_app = typer.Typer(no_args_is_help=True, help="Create signing keys.")
root_app = typer.Typer(no_args_is_help=True, help="Manage roots of trust: whose signatures devices accept.")
_New = Annotated[Path, typer.Argument(help="File to write.")]
_File = Annotated[Path, typer.Argument(help="File with a root of trust.")]
_Keys = Annotated[list[Path] | None, typer.Option("--key", help="Secret key to sign it with at once, repeatable.")]
_Days = Annotated[float, typer.Option(min=1, max=36500, callback=a_number, help="Days until it expires.")]
_Threshold = Annotated[int | None, typer.Option(min=1, help="Number of these keys that must sign; default: all.")]


@key_app.command("new")
def new_key(
    file: _New,
    passphrase_file: Annotated[
        Path | None, typer.Option(help="File with the passphrase to encrypt it; default: unencrypted.")
    ] = None,
) -> None:
    """Create a secret key that only you can read, and its public key (.pub) beside it, for `coordinator root`."""
    from coordinator.delivery import keys
    from edge_sdk.security.secrets import read_secret

    public = keys.new_key(file, None if passphrase_file is None else read_secret(passphrase_file))
    typer.echo(f"{file} is secret; {file.with_suffix('.pub')} says {public}")


@root_app.command("create")
def create_root(
    file: _New,
    root: Annotated[list[Path], typer.Option(help="Public key that may sign roots, repeatable.")],
    release: Annotated[list[Path], typer.Option(help="Public key that may sign releases, repeatable.")],
    round_key: Annotated[list[Path], typer.Option("--round", help="The coordinator's round.pub.")],
    root_threshold: _Threshold = None,
    release_threshold: _Threshold = None,
    key: _Keys = None,
    passphrase_file: Passphrase = None,
    days: _Days = 365.0,
) -> None:
    """Write a fleet's first root of trust."""
    from coordinator.delivery.roots import DAY_S, first_root, keys_in, write_root

    now_s = time.time()
    made = first_root(
        keys_in(root, root_threshold), keys_in(release, release_threshold), keys_in(round_key, 1), now_s, days * DAY_S
    )
    write_root(file, made, [read_key_file(path, passphrase_file) for path in key or ()])
    _next_step(file)


@root_app.command("rotate")
def rotate_root(
    file: _New,
    before: Annotated[Path, typer.Option("--from", help="File of the current root.")],
    root: Annotated[
        list[Path] | None, typer.Option(help="Public keys that may sign roots, instead of the current ones.")
    ] = None,
    release: Annotated[
        list[Path] | None, typer.Option(help="Public keys that may sign releases, instead of the current ones.")
    ] = None,
    round_key: Annotated[
        list[Path] | None, typer.Option("--round", help="The coordinator's round.pub, instead of the current one.")
    ] = None,
    root_threshold: _Threshold = None,
    release_threshold: _Threshold = None,
    key: _Keys = None,
    passphrase_file: Passphrase = None,
    days: _Days = 365.0,
) -> None:
    """Write the next root of trust; enough keys of the current root and enough of the new one must sign it."""
    from coordinator.delivery.roots import DAY_S, keys_in, next_root, write_root

    for name, files, threshold in (("root", root, root_threshold), ("release", release, release_threshold)):
        if threshold is not None and not files:
            raise ConfigurationError(f"--{name}-threshold {threshold} needs the keys that it counts: give --{name} too")
    changes = {
        name: keys_in(files, threshold)
        for name, files, threshold in (
            ("root", root, root_threshold),
            ("release", release, release_threshold),
            ("round", round_key, 1),
        )
        if files
    }
    made = next_root(before, changes, time.time(), days * DAY_S)
    write_root(file, made, [read_key_file(path, passphrase_file) for path in key or ()])
    _next_step(file)


@root_app.command("sign")
def sign_root(file: _File, key: KeyFile, passphrase_file: Passphrase = None) -> None:
    """Add a signature to a root of trust."""
    from coordinator.delivery.roots import sign_root

    signed = sign_root(file, read_key_file(key, passphrase_file))
    typer.echo(f"{file} has {len(signed.signatures)} signatures")


@root_app.command("install")
def install_root(file: _File, state_dir: StateDir) -> None:
    """Make this the fleet's root of trust; devices get it with their next release."""
    from coordinator.delivery.roots import install_root as install

    root = install(known_store(state_dir), state_dir, file, time.time(), typist())
    typer.echo(f"root {root.version} is installed; new devices are given {state_dir / 'root.json'}")


@root_app.command("show")
def show_root(file: _File, as_json: AsJson = False) -> None:
    """Show who may sign what, who has signed this root, and when it expires."""
    from coordinator.delivery.roots import read_root
    from coordinator.listing import root_rows, show

    show(root_rows(read_root(file)), as_json=as_json)


def _next_step(file: Path) -> None:
    typer.echo(f"{file}: `coordinator root sign` it with the other keys, then `coordinator root install` it")
