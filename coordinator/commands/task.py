"""`coordinator task …`: creates training tasks, and starts, pauses and stops them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coordinator.commands.options import StateDir, TaskName, known_store, typist
from coordinator.config import DEFAULT_RECIPE, Participation, Salience
from edge_sdk.command import AsJson, waiting
from edge_sdk.elastic.runtimes import Runtime
from edge_sdk.elastic.submodel import AdapterMethod, TrainablePart

if TYPE_CHECKING:
    from coordinator.store.states import TaskStatus

task_app = typer.Typer(no_args_is_help=True, help="Create and control training tasks.")


@task_app.command("create")
def create_task(
    name: Annotated[str, typer.Argument(help="Name of the task: a-z, 0-9 and '-'.")],
    state_dir: StateDir,
    model: Annotated[
        Path, typer.Option(help="Hugging Face folder of the model; `coordinator model new` makes one for sensors.")
    ],
    calibration: Annotated[
        Path, typer.Option(help="CSV, JSONL or .npz file of a few examples to compute salience on.")
    ],
    test: Annotated[Path, typer.Option(help="CSV, JSONL or .npz file of examples to evaluate each version on.")],
    rounds: Annotated[int, typer.Option(min=1, help="Number of rounds.")] = 5,
    min_devices: Annotated[
        int, typer.Option(min=1, help="Number of devices that a round waits for, for 20 s; then a quorum is enough.")
    ] = 1,
    max_devices: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of devices in a round; default: no limit.")
    ] = None,
    quorum: Annotated[int, typer.Option(min=1, help="Minimum number of updates for a round to count.")] = 1,
    only_able: Annotated[
        bool, typer.Option("--only-able", help="Only use devices that can train the whole model.")
    ] = False,
    salience: Annotated[Salience, typer.Option(help="Metric that ranks heads and neurons.")] = Salience.TAYLOR,
    part: Annotated[
        TrainablePart, typer.Option(help="Part of the model that devices train.")
    ] = TrainablePart.NO_EMBEDDINGS,
    adapters: Annotated[
        AdapterMethod | None,
        typer.Option(help="Adapter method for --part adapters; default: lora. The others need devices with torch."),
    ] = None,
    lora_rank: Annotated[int, typer.Option(min=1, help="Rank of LoRA or DoRA adapters.")] = 8,
    depth: Annotated[bool, typer.Option("--depth", help="Also leave out layers for the smallest devices.")] = False,
    learning_rate: Annotated[
        float, typer.Option(help="Learning rate of AdamW on the devices.")
    ] = DEFAULT_RECIPE.learning_rate,
    epochs: Annotated[
        int, typer.Option(min=1, help="Maximum number of passes over a device's examples per round.")
    ] = 1,
    max_steps: Annotated[
        int | None,
        typer.Option(min=1, help="Maximum number of training steps (of 16 examples) per round; default: no limit."),
    ] = None,
    distillation: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Weight, 0 to 1, of the wider submodel's outputs against the labels in training nested submodels; "
            "use 0.5 for a model from scratch.",
        ),
    ] = DEFAULT_RECIPE.distillation,
    nest: Annotated[
        list[float] | None,
        typer.Option(
            min=0.01,
            max=1,
            help="Width, as a share, of a nested submodel that wider devices also train; up to three, default 0.25. "
            "Use 0.5 and 0.25 for a model from scratch.",
        ),
    ] = None,
    encoding: Annotated[
        str,
        typer.Option(
            help="Encoding of updates: fp32, fp16, int8, or topk:SHARE (that share of each parameter's entries)."
        ),
    ] = "fp32",
    release: Annotated[bool, typer.Option(help="Release the final model to the devices.")] = True,
    seed: Annotated[int, typer.Option(help="Random seed of the task, as for a new head and for drawing devices.")] = 0,
) -> None:
    """Create a task and queue it; `coordinator serve` runs it."""
    import msgspec

    from coordinator.config import TaskConfig, parse_encoding
    from coordinator.delivery.roots import ensure_root
    from coordinator.planning.nesting import Nesting
    from coordinator.planning.space import Space
    from coordinator.rounds.tasks import queue_task
    from coordinator.store.opening import open_store
    from edge_sdk.elastic.submodel import Adapters
    from edge_sdk.errors import ConfigurationError

    if adapters is not None and part is not TrainablePart.ADAPTERS:
        raise ConfigurationError(f"--adapters {adapters.value} with --part {part.value} adds none; use --part adapters")
    config = TaskConfig(
        name=name,
        model_dir=str(model.absolute()),
        calibration_file=str(calibration.absolute()),
        test_file=str(test.absolute()),
        rounds=rounds,
        min_devices=min_devices,
        max_devices=max_devices,
        quorum=quorum,
        participation=Participation.ABLE if only_able else Participation.ALL,
        salience=salience,
        part=part,
        adapters=Adapters.of(adapters or AdapterMethod.LORA, lora_rank) if part is TrainablePart.ADAPTERS else None,
        space=Space(depth=depth),
        nesting=Nesting(shares=tuple(nest)) if nest else Nesting(),
        recipe=msgspec.structs.replace(
            DEFAULT_RECIPE,
            learning_rate=learning_rate,
            epochs=epochs,
            max_steps=max_steps,
            distillation=distillation,
        ),
        encoding=parse_encoding(encoding),
        release=release,
        seed=seed,
    )
    store = open_store(state_dir)
    queue_task(store, config, time.time(), typist())
    typer.echo(f"task {name} is queued; devices trust {ensure_root(store, state_dir, time.time())}")


@task_app.command("apply")
def apply_task(
    file: Annotated[Path, typer.Argument(help="TOML file; it can set more than the options of `create`.")],
    state_dir: StateDir,
) -> None:
    """Create a task from a TOML file and queue it. Applying the same file again changes nothing."""
    from coordinator.config import task_of_file
    from coordinator.delivery.roots import ensure_root
    from coordinator.rounds.tasks import queue_task
    from coordinator.store.opening import open_store

    config = task_of_file(file)
    store = open_store(state_dir)
    queue_task(store, config, time.time(), typist())
    typer.echo(f"task {config.name} is queued; devices trust {ensure_root(store, state_dir, time.time())}")


@task_app.command("plan")
def plan_task(
    name: TaskName,
    state_dir: StateDir,
    profile: Annotated[
        list[str] | None,
        typer.Option(help="Device profile (a name or a TOML file), repeatable; default: all that the task is for."),
    ] = None,
    runtime: Annotated[Runtime, typer.Option(help="What these devices train on.")] = Runtime.ONNX,
    as_json: AsJson = False,
) -> None:
    """Show what each kind of device would train and run in this task, before such a device has been seen.

    Its profile's limits are taken as free; a device that has less free at the time gets a smaller submodel.
    """
    from coordinator.listing import show

    with waiting("loading the task's model"):
        from coordinator.forecasting import forecast_rows

        rows = forecast_rows(known_store(state_dir), name, profile or (), runtime)
    show(rows, as_json=as_json)


@task_app.command("start")
def start_task(name: TaskName, state_dir: StateDir) -> None:
    """Continue a paused, stopped or failed task where it left off."""
    from coordinator.store.states import TaskStatus

    _change(state_dir, name, TaskStatus.PENDING)


@task_app.command("pause")
def pause_task(name: TaskName, state_dir: StateDir) -> None:
    """Let the open round finish, and open no further ones."""
    from coordinator.store.states import TaskStatus

    _change(state_dir, name, TaskStatus.PAUSED)


@task_app.command("stop")
def stop_task(name: TaskName, state_dir: StateDir) -> None:
    """Close the open round now, with the updates that have arrived; `start` continues from there."""
    from coordinator.store.states import TaskStatus

    _change(state_dir, name, TaskStatus.STOPPED)


@task_app.command("list")
def list_tasks(state_dir: StateDir, as_json: AsJson = False) -> None:
    """List every task with its status, its rounds, and the accuracy of its newest version."""
    from coordinator.listing import show, task_rows

    show(task_rows(known_store(state_dir)), as_json=as_json)


@task_app.command("show")
def show_task(name: TaskName, state_dir: StateDir, as_json: AsJson = False) -> None:
    """Show one task: its status and why it failed, its settings, its accuracy by width, its rounds."""
    from coordinator.listing import round_rows, setting_rows, show_together, state_rows, version_rows

    store = known_store(state_dir)
    parts = {
        "task": state_rows(store, name),
        "settings": setting_rows(store, name),
        "versions": version_rows(store, name),
        "rounds": round_rows(store, name),
    }
    show_together(parts, as_json=as_json)


def _change(state_dir: Path, name: str, status: TaskStatus) -> None:
    from coordinator.rounds.tasks import change_status

    change_status(known_store(state_dir), name, status, time.time(), typist())
    typer.echo(f"task {name} is {status.value}")
