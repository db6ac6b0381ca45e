"""`coordinator token …`: the tokens with which clients use the API."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from coordinator.commands.options import StateDir, known_store, typist
from coordinator.store.states import AccessRole
from edge_sdk.command import AsJson

token_app = typer.Typer(no_args_is_help=True, help="Manage the tokens for the API and the dashboard.")


@token_app.command("create")
def create_token(
    name: Annotated[str, typer.Argument(help="Name of the token for the audit log: a-z, 0-9 and '-'.")],
    state_dir: StateDir,
    role: Annotated[AccessRole, typer.Option(help="What the token allows.")] = AccessRole.VIEWER,
    days: Annotated[float | None, typer.Option(min=0.001, help="Days until it expires; default: never.")] = None,
) -> None:
    """Create a token and print it; it cannot be shown again."""
    from coordinator.api.access import make_token

    typer.echo(make_token(known_store(state_dir), name, role, days, time.time(), typist()))


@token_app.command("list")
def list_tokens(state_dir: StateDir, as_json: AsJson = False) -> None:
    """List the tokens by name; secrets are not shown."""
    from coordinator.listing import show, token_rows

    show(token_rows(known_store(state_dir), time.time()), as_json=as_json)


@token_app.command("revoke")
def revoke(name: Annotated[str, typer.Argument(help="Name of the token.")], state_dir: StateDir) -> None:
    """Revoke a token; from now on it is refused."""
    from coordinator.api.access import revoke_token

    revoke_token(known_store(state_dir), name, time.time(), typist())
