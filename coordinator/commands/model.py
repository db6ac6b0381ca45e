"""`coordinator model …`: inspects models, makes new ones, and saves trained ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from coordinator.commands.options import AsJson, StateDir, TaskName, open_store
from coordinator.config import DEFAULT_RECIPE, CoordinatorConfig, Salience
from edge_sdk.data.images import IMAGE_SIZE

model_app = typer.Typer(no_args_is_help=True, help="What can be trained.")


@model_app.command("inspect")
def inspect_model(
    model: Annotated[Path, typer.Argument(help="Hugging Face folder.")],
    data: Annotated[Path, typer.Argument(help="CSV, JSONL or .npz of labelled examples.")],
    metric: Annotated[list[Salience] | None, typer.Option(help="Compare these; all where none is named.")] = None,
    picture: Annotated[Path, typer.Option(help="Where the curves go, as SVG.")] = Path("inspection.svg"),
    max_tokens: Annotated[int, typer.Option(min=3, help="Of each text.")] = DEFAULT_RECIPE.max_tokens,
    calibration: Annotated[int, typer.Option(min=1, help="Examples to rank by.")] = 256,
    test: Annotated[int, typer.Option(min=1, help="Examples to judge by.")] = 500,
    seed: Annotated[int, typer.Option(help="Of the split, the new head and the random metric.")] = 0,
    threads: Annotated[int, typer.Option(help="For salience and evaluation.")] = 2,
    as_json: AsJson = False,
) -> None:
    """What each layer's units weigh, and how good the submodels are that are cut without any training."""
    import msgspec

    from coordinator.inspecting import layer_rows, width_rows, write_picture
    from coordinator.listing import show
    from coordinator.models import inspection

    metrics = tuple(metric or Salience)
    recipe = msgspec.structs.replace(DEFAULT_RECIPE, max_tokens=max_tokens)
    cache = CoordinatorConfig(state_dir=Path(), broker="").template_cache
    found = inspection.inspect_model(
        model,
        data,
        metrics,
        cache,
        recipe,
        calibration=calibration,
        test=test,
        seed=seed,
        threads=threads,
        say=lambda text: typer.echo(text, err=True),
    )
    write_picture(found, picture)
    for rows in (layer_rows(found, metrics[0]), width_rows(found)):
        show(rows, as_json=as_json)
    typer.echo(f"the curves are in {picture}", err=True)


@model_app.command("new")
def new_model(
    folder: Annotated[Path, typer.Argument(help="Folder to write, as Hugging Face does.")],
    data: Annotated[
        Path, typer.Argument(help=".npz of windows (x: examples, steps, channels) or square images, or label/*.png.")
    ],
    patch: Annotated[int, typer.Option(min=1, help="Steps of a window, or pixels a side, that make one token.")] = 8,
    layers: Annotated[int, typer.Option(min=1)] = 3,
    heads: Annotated[int, typer.Option(min=1)] = 8,
    hidden: Annotated[int, typer.Option(min=1)] = 64,
    ffn: Annotated[int, typer.Option(min=1)] = 256,
    image_size: Annotated[int, typer.Option(min=1, help="Pixels a side, where the data is a folder.")] = IMAGE_SIZE,
    seed: Annotated[int, typer.Option(help="Of the random weights.")] = 0,
) -> None:
    """A small transformer with random weights that fits your data, for sensors and images without a pretrained one."""
    from coordinator.models.fresh import FreshSizes, write_model_for
    from edge_sdk.data import ArrayExamples, read_examples
    from edge_sdk.errors import DataFormatError

    examples = read_examples(data, image_size)
    if not isinstance(examples, ArrayExamples):
        raise DataFormatError(f"{data} holds texts, for which a pretrained model does better; name its folder instead")
    write_model_for(folder, examples, FreshSizes(layers, heads, hidden, ffn), patch=patch, seed=seed)
    typer.echo(f"a new model for {len(examples)} examples like {data} is in {folder}")


@model_app.command("save")
def save_model(
    task: TaskName,
    folder: Annotated[Path, typer.Argument(help="Folder to write.")],
    state_dir: StateDir,
    version: Annotated[int | None, typer.Option(min=0, help="The newest if not named.")] = None,
) -> None:
    """A version of a task's model as a Hugging Face folder, or its adapters as PEFT's."""
    from coordinator.rounds.tasks import save_version
    from edge_sdk.transport.blob_folder import BlobFolder

    blobs = BlobFolder(CoordinatorConfig(state_dir=state_dir, broker="").blob_dir)
    number = save_version(open_store(state_dir), blobs, task, folder, version)
    typer.echo(f"version {number} of task {task} is in {folder}")
