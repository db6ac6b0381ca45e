"""`coordinator task …`: creates training tasks, and starts, pauses and stops them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coordinator.commands.options import AsJson, StateDir, TaskName, open_store, typist
from coordinator.config import DEFAULT_RECIPE, Participation, Salience
from edge_sdk.elastic.submodel import AdapterMethod, TrainablePart

if TYPE_CHECKING:
    from coordinator.store.states import TaskStatus

task_app = typer.Typer(no_args_is_help=True, help="What is to be trained.")


@task_app.command("create")
def create_task(
    name: Annotated[str, typer.Argument(help="A name of a-z, 0-9 and '-'.")],
    state_dir: StateDir,
    model: Annotated[Path, typer.Option(help="Hugging Face folder; see `coordinator model new` for sensors.")],
    calibration: Annotated[Path, typer.Option(help="CSV, JSONL or .npz of a few examples, for the salience.")],
    test: Annotated[Path, typer.Option(help="CSV, JSONL or .npz of examples to judge each version by.")],
    rounds: Annotated[int, typer.Option(min=1, help="How many rounds.")] = 5,
    min_devices: Annotated[int, typer.Option(min=1, help="How many devices a round waits for.")] = 1,
    max_devices: Annotated[int | None, typer.Option(min=1, help="How many a round takes in; all if not named.")] = None,
    quorum: Annotated[int, typer.Option(min=1, help="How many updates a round needs at its deadline.")] = 1,
    only_able: Annotated[bool, typer.Option("--only-able", help="Take in only devices that train it whole.")] = False,
    salience: Annotated[Salience, typer.Option(help="How heads and neurons are ranked.")] = Salience.TAYLOR,
    part: Annotated[TrainablePart, typer.Option(help="What devices train.")] = TrainablePart.NO_EMBEDDINGS,
    adapters: Annotated[
        AdapterMethod | None,
        typer.Option(help="Which, where adapters are trained: lora if not named; the others need devices on torch."),
    ] = None,
    lora_rank: Annotated[int, typer.Option(min=1, help="Of LoRA's or DoRA's adapters, where these are trained.")] = 8,
    depth: Annotated[bool, typer.Option("--depth", help="Also leave layers out for the smallest devices.")] = False,
    learning_rate: Annotated[float, typer.Option(help="Of AdamW on the devices.")] = DEFAULT_RECIPE.learning_rate,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over a device's examples in a round, at most.")] = 1,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Steps of 16 examples in a round, at most.")] = None,
    distillation: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="How much nested submodels learn from the whole one, not from labels; 0.5 for a model from scratch.",
        ),
    ] = DEFAULT_RECIPE.distillation,
    nest: Annotated[
        list[float] | None,
        typer.Option(
            min=0.01,
            max=1,
            help="Share of the model that every wider device trains nested in its own, 0.25 if none is given; up to "
            "three of them. 0.5 and 0.25 for a model from scratch.",
        ),
    ] = None,
    encoding: Annotated[
        str,
        typer.Option(
            help="Of updates: fp32, fp16, int8, or topk:SHARE, which sends a share of each parameter's entries."
        ),
    ] = "fp32",
    release: Annotated[bool, typer.Option(help="Release the result to the devices.")] = True,
    seed: Annotated[int, typer.Option(help="Of the new head.")] = 0,
) -> None:
    """Queue a task; `coordinator serve` runs it."""
    import msgspec

    from coordinator.config import TaskConfig, parse_encoding
    from coordinator.delivery.roots import ensure_root
    from coordinator.planning.nesting import Nesting
    from coordinator.planning.space import Space
    from coordinator.rounds.tasks import queue_task
    from edge_sdk.elastic.submodel import Adapters
    from edge_sdk.errors import ConfigurationError

    if adapters is not None and part is not TrainablePart.ADAPTERS:
        raise ConfigurationError(f"--adapters {adapters.value} with --part {part.value} adds none; say --part adapters")
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
    file: Annotated[Path, typer.Argument(help="TOML: every option of a task, and more than `create` has.")],
    state_dir: StateDir,
) -> None:
    """Queue a task as a TOML file says it; the file may be kept, reviewed and applied again."""
    from coordinator.config import task_of_file
    from coordinator.delivery.roots import ensure_root
    from coordinator.rounds.tasks import queue_task

    config = task_of_file(file)
    store = open_store(state_dir)
    queue_task(store, config, time.time(), typist())
    typer.echo(f"task {config.name} is queued; devices trust {ensure_root(store, state_dir, time.time())}")


@task_app.command("start")
def start_task(name: TaskName, state_dir: StateDir) -> None:
    """Go on with a task that is paused, stopped or failed, where it was."""
    from coordinator.store.states import TaskStatus

    _change(state_dir, name, TaskStatus.PENDING)


@task_app.command("pause")
def pause_task(name: TaskName, state_dir: StateDir) -> None:
    """Open no more rounds; the open one comes to its end."""
    from coordinator.store.states import TaskStatus

    _change(state_dir, name, TaskStatus.PAUSED)


@task_app.command("stop")
def stop_task(name: TaskName, state_dir: StateDir) -> None:
    """End now: the open round is decided with the updates that have come. `start` goes on from there."""
    from coordinator.store.states import TaskStatus

    _change(state_dir, name, TaskStatus.STOPPED)


@task_app.command("list")
def list_tasks(state_dir: StateDir, as_json: AsJson = False) -> None:
    """Every task: where it stands, how many rounds it had, how good its newest version is."""
    from coordinator.listing import show, task_rows

    show(task_rows(open_store(state_dir)), as_json=as_json)


@task_app.command("show")
def show_task(name: TaskName, state_dir: StateDir, as_json: AsJson = False) -> None:
    """One task: where it stands, and why it failed; its settings, its versions by width, its rounds."""
    from coordinator.listing import round_rows, setting_rows, show, state_rows, version_rows

    store = open_store(state_dir)
    for rows in (
        state_rows(store, name),
        setting_rows(store, name),
        version_rows(store, name),
        round_rows(store, name),
    ):
        show(rows, as_json=as_json)


def _change(state_dir: Path, name: str, status: TaskStatus) -> None:
    from coordinator.rounds.tasks import change_status

    change_status(open_store(state_dir), name, status, time.time(), typist())
    typer.echo(f"task {name} is {status.value}")
