"""`coordinator rollout …`: sends a release out to the devices."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from coordinator.commands.options import MAX_NUMBER, StateDir, known_store, typist
from coordinator.delivery.rollout import Command
from edge_sdk.command import AsJson

rollout_app = typer.Typer(no_args_is_help=True, help="Roll releases out to the devices, and control the rollouts.")
RolloutNumber = Annotated[int, typer.Argument(max=MAX_NUMBER, help="Number of the rollout.")]


@rollout_app.command("start")
def start(
    release: Annotated[int, typer.Argument(max=MAX_NUMBER, help="Number of an approved release.")],
    state_dir: StateDir,
    stages: Annotated[
        str, typer.Option(help="Stages: shares of the devices or groups, e.g. 1%,10%,100% or canary,100%.")
    ],
    success: Annotated[
        float, typer.Option(min=0.1, max=100, help="Percent of a stage that must be healthy before the next one opens.")
    ] = 90.0,
    error: Annotated[
        float, typer.Option(min=0.1, max=100, help="Percent of a stage that must have failed for the rollout to halt.")
    ] = 10.0,
    health_interval: Annotated[
        float, typer.Option(min=0.1, help="Seconds of silence after which a device counts as failed.")
    ] = 3600.0,
    trial: Annotated[
        float, typer.Option(min=0, help="Seconds that a new model serves on trial before it is kept.")
    ] = 0.0,
    min_accuracy: Annotated[
        float | None, typer.Option(min=0, max=1, help="Minimum accuracy on a device's own held-out examples, 0 to 1.")
    ] = None,
    max_accuracy_loss: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Maximum loss of accuracy against the previous model, on the same examples."),
    ] = None,
    max_latency_ms: Annotated[
        float | None, typer.Option(min=0.001, help="Maximum median latency of one example, in milliseconds.")
    ] = None,
) -> None:
    """Roll a release out, stage by stage. A device on which the new model fails its trial goes back by itself."""
    from coordinator.delivery.plans import typed_plan
    from coordinator.delivery.starting import start_rollout

    plan = typed_plan(
        stages=stages,
        success_percent=success,
        error_percent=error,
        health_interval_s=health_interval,
        trial={
            "seconds": trial,
            "min_accuracy": min_accuracy,
            "max_accuracy_loss": max_accuracy_loss,
            "max_latency_ms": max_latency_ms,
        },
    )
    with known_store(state_dir).transaction() as tx:
        known = start_rollout(tx, release, plan, time.time(), typist())
        count = len(tx.assignments.of_rollout(known.rollout))
    typer.echo(f"rollout {known.rollout} of release {release} goes to {count} devices in {len(plan.stages)} stages")


@rollout_app.command("pause")
def pause(rollout: RolloutNumber, state_dir: StateDir) -> None:
    """Send the release to no further devices; those that already have it continue."""
    _say(rollout, Command.PAUSE, state_dir)


@rollout_app.command("resume")
def resume(rollout: RolloutNumber, state_dir: StateDir) -> None:
    """Continue a paused rollout."""
    _say(rollout, Command.RESUME, state_dir)


@rollout_app.command("halt")
def halt(rollout: RolloutNumber, state_dir: StateDir) -> None:
    """End the rollout for good; devices that are not healthy yet go back to the previous model."""
    _say(rollout, Command.HALT, state_dir)


@rollout_app.command("rollback")
def rollback(rollout: RolloutNumber, state_dir: StateDir) -> None:
    """Have every device go back to what it ran before this rollout."""
    _say(rollout, Command.ROLLBACK, state_dir)


@rollout_app.command("list")
def list_rollouts(state_dir: StateDir, as_json: AsJson = False) -> None:
    """List every rollout with its stage and the states of its devices."""
    from coordinator.listing import rollout_rows, show

    show(rollout_rows(known_store(state_dir)), as_json=as_json)


@rollout_app.command("show")
def show_rollout(rollout: RolloutNumber, state_dir: StateDir, as_json: AsJson = False) -> None:
    """Show every device of a rollout with its stage, its state, and why it went back."""
    from coordinator.listing import assignment_rows, show

    show(assignment_rows(known_store(state_dir), rollout), as_json=as_json)


def _say(rollout: int, command: Command, state_dir: Path) -> None:
    from coordinator.delivery.starting import command_rollout

    with known_store(state_dir).transaction() as tx:
        known = command_rollout(tx, rollout, command, time.time(), typist())
    typer.echo(f"rollout {known.rollout} is {known.status.value}")
