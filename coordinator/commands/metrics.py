"""`coordinator metrics …`: prints the board for Grafana."""

from __future__ import annotations

import typer

metrics_app = typer.Typer(no_args_is_help=True, help="What Prometheus and Grafana are told.")


@metrics_app.callback()
def metrics() -> None:
    """What Prometheus and Grafana are told."""


@metrics_app.command("board")
def print_board() -> None:
    """Print a board for Grafana, which takes it under Dashboards, New, Import."""
    from importlib.resources import files

    typer.echo(files("coordinator.metrics").joinpath("grafana.json").read_text("utf-8"), nl=False)
