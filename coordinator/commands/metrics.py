"""`coordinator metrics …`: prints the board for Grafana."""

from __future__ import annotations

import typer

metrics_app = typer.Typer(no_args_is_help=True, help="Print what monitoring tools need.")


@metrics_app.callback()
def metrics() -> None:
    """Print what monitoring tools need."""


@metrics_app.command("board")
def print_board() -> None:
    """Print a dashboard for Grafana; import it under Dashboards, New, Import."""
    from importlib.resources import files

    typer.echo(files("coordinator.metrics").joinpath("grafana.json").read_text("utf-8"), nl=False)
