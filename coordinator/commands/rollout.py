"""`coordinator rollout …`: sends a release out to the devices."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from coordinator.commands.options import AsJson, StateDir, open_store, typist
from coordinator.delivery.rollout import Command

rollout_app = typer.Typer(no_args_is_help=True, help="Releases on their way to the devices.")
RolloutNumber = Annotated[int, typer.Argument(help="The rollout's number.")]


@rollout_app.command("start")
def start(
    release: Annotated[int, typer.Argument(help="The release's number; it has to be approved.")],
    state_dir: StateDir,
    stages: Annotated[str, typer.Option(help="Shares of the devices, or groups: 1%,10%,50%,100% or canary,100%.")],
    success: Annotated[
        float, typer.Option(min=0.1, max=100, help="Percent of a stage that is healthy before the next one opens.")
    ] = 90.0,
    error: Annotated[
        float, typer.Option(min=0.1, max=100, help="Percent of a stage that has failed when it all halts.")
    ] = 10.0,
    health_interval: Annotated[
        float, typer.Option(min=0.1, help="Seconds that a device may say nothing before it has failed.")
    ] = 3600.0,
    trial: Annotated[float, typer.Option(min=0, help="Seconds that a model serves on trial before it stays.")] = 0.0,
    min_accuracy: Annotated[
        float | None, typer.Option(min=0, max=1, help="On a device's own held-out examples.")
    ] = None,
    max_accuracy_loss: Annotated[
        float | None, typer.Option(min=0, max=1, help="Against the model before, on the same examples.")
    ] = None,
    max_latency_ms: Annotated[float | None, typer.Option(min=0.001, help="Of one example, the median.")] = None,
) -> None:
    """Send a release out, stage by stage; each device goes back by itself where the model does not do well on it."""
    from coordinator.delivery.plans import typed_plan
    from coordinator.delivery.starting import start_rollout

    plan = typed_plan(
        stages=stages,
        success_percent=success,
        error_percent=error,
        health_interval_s=health_interval,
        trial={
            "seconds": trial,
            "least_accuracy": min_accuracy,
            "most_accuracy_lost": max_accuracy_loss,
            "most_latency_ms": max_latency_ms,
        },
    )
    with open_store(state_dir).transaction() as tx:
        known = start_rollout(tx, release, plan, time.time(), typist())
        count = len(tx.assignments.of_rollout(known.rollout))
    typer.echo(f"rollout {known.rollout} of release {release} goes to {count} devices in {len(plan.stages)} stages")


@rollout_app.command("pause")
def pause(rollout: RolloutNumber, state_dir: StateDir) -> None:
    """Tell nobody new; devices that were told go on."""
    _say(rollout, Command.PAUSE, state_dir)


@rollout_app.command("resume")
def resume(rollout: RolloutNumber, state_dir: StateDir) -> None:
    """Go on with a rollout that is paused."""
    _say(rollout, Command.RESUME, state_dir)


@rollout_app.command("halt")
def halt(rollout: RolloutNumber, state_dir: StateDir) -> None:
    """Tell nobody new for good; devices that have not shown to be healthy go back."""
    _say(rollout, Command.HALT, state_dir)


@rollout_app.command("rollback")
def rollback(rollout: RolloutNumber, state_dir: StateDir) -> None:
    """Have every device run what it ran before this rollout."""
    _say(rollout, Command.ROLLBACK, state_dir)


@rollout_app.command("list")
def list_rollouts(state_dir: StateDir, as_json: AsJson = False) -> None:
    """Every rollout: how far it is, how its devices stand."""
    from coordinator.listing import rollout_rows, show

    show(rollout_rows(open_store(state_dir)), as_json=as_json)


@rollout_app.command("show")
def show_rollout(rollout: RolloutNumber, state_dir: StateDir, as_json: AsJson = False) -> None:
    """One rollout: every device with its stage, where it stands, and why it went back."""
    from coordinator.listing import assignment_rows, show

    show(assignment_rows(open_store(state_dir), rollout), as_json=as_json)


def _say(rollout: int, command: Command, state_dir: Path) -> None:
    from coordinator.delivery.starting import command_rollout

    with open_store(state_dir).transaction() as tx:
        known = command_rollout(tx, rollout, command, time.time(), typist())
    typer.echo(f"rollout {known.rollout} is {known.status.value}")
