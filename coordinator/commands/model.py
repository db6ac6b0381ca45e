"""`coordinator model …`: inspects models, makes new ones, and saves trained ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from coordinator.commands.options import MAX_NUMBER, StateDir, TaskName, known_store
from coordinator.config import DEFAULT_RECIPE, CoordinatorConfig, Salience
from edge_sdk.command import AsJson
from edge_sdk.data.images import IMAGE_SIZE

model_app = typer.Typer(no_args_is_help=True, help="Inspect, create and save models.")


@model_app.command("inspect")
def inspect_model(
    model: Annotated[Path, typer.Argument(help="Hugging Face folder of the model.")],
    data: Annotated[Path, typer.Argument(help="CSV, JSONL or .npz file of labelled examples.")],
    metric: Annotated[
        list[Salience] | None, typer.Option(help="Salience metric to compare, repeatable; default: all.")
    ] = None,
    picture: Annotated[Path, typer.Option(help="SVG file to write the curves to.")] = Path("inspection.svg"),
    max_tokens: Annotated[
        int, typer.Option(min=3, help="Length at which texts are cut, in tokens.")
    ] = DEFAULT_RECIPE.max_tokens,
    calibration: Annotated[int, typer.Option(min=1, help="Number of examples that salience is computed on.")] = 256,
    test: Annotated[int, typer.Option(min=1, help="Number of examples that accuracy is measured on.")] = 500,
    seed: Annotated[int, typer.Option(help="Random seed of the split, the new head and the random metric.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="Threads for computing salience and for evaluation.")] = 2,
    as_json: AsJson = False,
) -> None:
    """Show the salience of each layer's heads and neurons, and how accurate untrained submodels are."""
    import msgspec

    from coordinator.inspecting import layer_rows, width_rows, write_picture
    from coordinator.listing import show_together
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
    show_together({"layers": layer_rows(found, metrics[0]), "widths": width_rows(found)}, as_json=as_json)
    typer.echo(f"the curves are in {picture}", err=True)


@model_app.command("new")
def new_model(
    folder: Annotated[Path, typer.Argument(help="Hugging Face folder to write.")],
    data: Annotated[
        Path,
        typer.Argument(
            help=".npz file of windows (x: examples, steps, channels) or square images, or a folder label/*.png."
        ),
    ],
    patch: Annotated[
        int, typer.Option(min=1, help="Size of the patch that makes one token: steps of a window, or pixels per side.")
    ] = 8,
    layers: Annotated[int, typer.Option(min=1, help="Number of layers.")] = 3,
    heads: Annotated[int, typer.Option(min=1, help="Attention heads per layer.")] = 8,
    hidden: Annotated[int, typer.Option(min=1, help="Hidden size.")] = 64,
    ffn: Annotated[int, typer.Option(min=1, help="FFN neurons per layer.")] = 256,
    image_size: Annotated[
        int, typer.Option(min=1, help="Side of the images in pixels, if the data is a folder.")
    ] = IMAGE_SIZE,
    seed: Annotated[int, typer.Option(help="Random seed of the weights.")] = 0,
) -> None:
    """Write a small transformer with random weights, for sensor windows or images like the given ones."""
    from coordinator.models.fresh import FreshSizes, write_model_for
    from edge_sdk.data import ArrayExamples, read_examples
    from edge_sdk.errors import DataFormatError

    examples = read_examples(data, image_size)
    if not isinstance(examples, ArrayExamples):
        raise DataFormatError(f"{data} holds texts, for which a pretrained model works better: use one instead")
    write_model_for(folder, examples, FreshSizes(layers, heads, hidden, ffn), patch=patch, seed=seed)
    typer.echo(f"a new model for {len(examples)} examples like {data} is in {folder}")


@model_app.command("save")
def save_model(
    task: TaskName,
    folder: Annotated[Path, typer.Argument(help="Folder to write.")],
    state_dir: StateDir,
    version: Annotated[
        int | None, typer.Option(min=0, max=MAX_NUMBER, help="Version to save; default: the newest.")
    ] = None,
) -> None:
    """Save a version of a task's model as a Hugging Face folder, or its adapters as a PEFT folder."""
    from coordinator.rounds.tasks import save_version
    from edge_sdk.transport.blob_folder import BlobFolder

    store = known_store(state_dir)
    blobs = BlobFolder(CoordinatorConfig(state_dir=state_dir, broker="").blob_dir)
    number = save_version(store, blobs, task, folder, version)
    typer.echo(f"version {number} of task {task} is in {folder}")
