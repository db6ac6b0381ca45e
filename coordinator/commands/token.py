"""`coordinator token …`: the tokens with which clients use the API."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from coordinator.commands.options import AsJson, StateDir, open_store, typist
from coordinator.store.states import AccessRole

token_app = typer.Typer(no_args_is_help=True, help="Who may use the API.")


@token_app.command("create")
def create_token(
    name: Annotated[str, typer.Argument(help="A name of a-z, 0-9 and '-', which the audit log shows.")],
    state_dir: StateDir,
    role: Annotated[AccessRole, typer.Option(help="What its bearer may do.")] = AccessRole.VIEWER,
    days: Annotated[float | None, typer.Option(min=0.001, help="Until it expires; never if not named.")] = None,
) -> None:
    """Make a token and print it: nobody can read it again."""
    from coordinator.api.access import make_token

    typer.echo(make_token(open_store(state_dir), name, role, days, time.time(), typist()))


@token_app.command("list")
def list_tokens(state_dir: StateDir, as_json: AsJson = False) -> None:
    """Every token by name, without its secret."""
    from coordinator.listing import show, token_rows

    show(token_rows(open_store(state_dir), time.time()), as_json=as_json)


@token_app.command("revoke")
def revoke(name: Annotated[str, typer.Argument(help="The token's name.")], state_dir: StateDir) -> None:
    """The token is worth nothing from now on."""
    from coordinator.api.access import revoke_token

    revoke_token(open_store(state_dir), name, time.time(), typist())
