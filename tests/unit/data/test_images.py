"""Pictures become small arrays, one by one, and fit a model's size when they are encoded."""

from __future__ import annotations

import json
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from PIL import Image
from pyarrow import parquet as pq

from edge_sdk.data import ArrayExamples, read_examples
from edge_sdk.data.batches import encode_examples
from edge_sdk.data.examples import joined
from edge_sdk.data.images import small_image
from edge_sdk.data.owned import source_of
from edge_sdk.data.store import ExampleStore
from edge_sdk.errors import DataFormatError, StorageError

RED, BLUE = (255, 0, 0), (0, 0, 255)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One wide and one high picture a label: the middle is coloured, the rest is black."""
    for label, colour in (("cat", RED), ("dog", BLUE)):
        (tmp_path / label).mkdir()
        for name, size in (("a.png", (90, 30)), ("b.jpg", (30, 90)), ("notes.txt", None)):
            if size is None:
                (tmp_path / label / name).write_text("no picture")
                continue
            picture = Image.new("RGB", size)
            picture.paste(colour, ((size[0] - 30) // 2, (size[1] - 30) // 2, (size[0] + 30) // 2, (size[1] + 30) // 2))
            picture.save(tmp_path / label / name, quality=95)
    return tmp_path


def test_folder_of_pictures_is_cut_to_the_middle_and_made_small(folder: Path) -> None:
    found = read_examples(folder, 10)
    assert isinstance(found, ArrayExamples)
    assert (found.values.dtype, found.values.shape) == (np.uint8, (4, 10, 10, 3))
    assert found.labels == ("cat", "cat", "dog", "dog")
    for image, colour in zip(found.values, (RED, RED, BLUE, BLUE), strict=True):
        assert np.abs(image.astype(int) - colour).max() < 40  # JPEG is not exact
    assert read_examples(folder).values.shape == (4, 224, 224, 3)


@pytest.mark.parametrize(("tag", "kind"), [(0x0100, 2), (0x010F, 11), (0x011A, 2)])
def test_picture_with_odd_exif_data_is_turned_all_the_same(folder: Path, tag: int, kind: int) -> None:
    """A width that is a text, a maker that is a number: one such picture made its whole folder unreadable."""
    entries = struct.pack("<HHI2H", 0x0112, 3, 1, 6, 0) + struct.pack("<HHI4s", tag, kind, 1, b"abc")
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + bytes(4)
    picture = Image.new("RGB", (40, 40), RED)
    picture.paste(BLUE, (0, 0, 20, 40))
    picture.save(folder / "cat" / "c.jpg", exif=exif, quality=95)
    found = read_examples(folder, 10)
    assert len(found) == 5
    turned = found.values[2].astype(int)
    assert np.abs(turned[0] - BLUE).max() < 40
    assert np.abs(turned[-1] - RED).max() < 40


@pytest.mark.parametrize(("height", "width"), [(8, 8), (6, 10)])
@pytest.mark.parametrize("channels", [1, 3])
def test_larger_images_are_made_to_fit_the_model(folder: Path, channels: int, height: int, width: int) -> None:
    examples = read_examples(folder, 16)
    shape = (channels, height, width)
    data = encode_examples(examples, ("cat", "dog"), input_shape=shape)
    pixels = data.batch_of(np.arange(4)).inputs["pixel_values"]
    assert (pixels.shape, pixels.dtype) == ((4, *shape), np.float32)
    assert pixels[0, 0].mean() > 0.3 if channels == 3 else pixels[0].mean() < 0


def test_hidden_folders_and_files_are_none(folder: Path) -> None:
    (folder / ".thumbnails").mkdir()
    Image.new("RGB", (4, 4)).save(folder / ".thumbnails" / "a.png")
    (folder / "cat" / "._a.png").write_bytes(b"what macOS puts beside a file")
    found = read_examples(folder, 10)
    assert isinstance(found, ArrayExamples)
    assert found.labels == ("cat", "cat", "dog", "dog")


def test_picture_of_sixteen_bits_keeps_its_greys(tmp_path: Path) -> None:
    greys = np.tile(np.linspace(0, 65535, 64, dtype=np.uint16), (64, 1))
    Image.fromarray(greys).save(tmp_path / "a.png")
    shown = small_image(tmp_path / "a.png", 64, "").astype(int)
    assert np.abs(shown - (greys >> 8)[..., None]).max() <= 1
    as_integers = Image.fromarray(greys.astype(np.int32))  # how an older Pillow opens such a file
    assert np.array_equal(small_image(as_integers, 64, ""), shown)


@pytest.mark.parametrize(
    ("values", "grey"),
    [
        (np.full((8, 8), 0.5, np.float32), 127),
        (np.full((8, 8), 200, np.float32), 200),
        (np.full((8, 8), 200, np.int32), 200),
        (np.full((8, 8), 51200, np.int32), 200),
        (np.full((8, 8), 51200, np.uint16), 200),
        (np.full((8, 8), 200, np.uint16), 0),
    ],
    ids=["shares", "floats", "integers", "sixteen-bits", "I;16", "dark"],
)
def test_picture_of_floats_or_integers_is_not_black(values: NDArray[Any], grey: int) -> None:
    assert (small_image(Image.fromarray(values), 4, "it") == grey).all()


@pytest.mark.parametrize("value", [-1.0, 300.0, float("nan")])
def test_picture_of_floats_whose_scale_is_unknown_is_refused_by_its_mode(value: float) -> None:
    with pytest.raises(DataFormatError, match=r"row 1 has a picture of mode F with values from .* 0 to 255"):
        small_image(Image.fromarray(np.full((8, 8), value, np.float32)), 4, "row 1")


def test_images_of_one_channel_keep_to_it() -> None:
    gray = ArrayExamples(np.full((1, 8, 8, 1), 255, dtype=np.uint8), ("cat",))
    data = encode_examples(gray, ("cat", "dog"), input_shape=(1, 4, 4))
    np.testing.assert_allclose(data.batch_of(np.array([0])).inputs["pixel_values"], np.ones((1, 1, 4, 4)))


@pytest.mark.parametrize(
    ("channels", "shape", "complaint"),
    [
        (3, (3, 16, 16), "images of 3 x 8 x 8 .* smaller than the model's 3 x 16 x 16; keep larger ones: image_size"),
        (2, (2, 4, 4), "images of 2 x 8 x 8 .* do not fit the model's 2 x 4 x 4"),
    ],
)
def test_images_that_do_not_fit_are_refused_with_both_sizes(
    channels: int, shape: tuple[int, int, int], complaint: str
) -> None:
    images = ArrayExamples(np.zeros((1, 8, 8, channels), dtype=np.uint8), ("cat",))
    with pytest.raises(DataFormatError, match=complaint):
        encode_examples(images, ("cat",), input_shape=shape)


def test_only_one_picture_is_held_at_its_full_size(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    for number in range(6):
        noise = np.random.default_rng(number).integers(0, 256, (800, 800, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "cat" / f"{number}.bmp")
    small_image(tmp_path / "cat" / "0.bmp", 8, "")  # Pillow's own modules
    tracemalloc.start()
    try:
        read_examples(tmp_path, 8)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 2 * 800 * 800 * 3


def test_agent_keeps_no_more_pictures_of_a_folder_in_memory_the_more_there_are(tmp_path: Path) -> None:
    """200 pictures are 30 MB when small; numpy writes an array 16 MiB at a time."""
    pictures, state = tmp_path / "pictures", tmp_path / "state"
    state.mkdir()
    for number in range(200):
        file = pictures / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (number, 0, 0)).save(file)
    tracemalloc.start()
    try:
        store = ExampleStore(pictures, state, share=0.5, seed=1)
        store.learn((Image.new("RGB", (4, 4), BLUE), "a"))
        store.refresh()
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 22e6
    assert store.training_file is not None
    assert store.held_out is not None
    training = read_examples(store.training_file)
    assert len(training) + len(store.held_out) == 201
    assert {file.name for file in state.iterdir()} == {"learnt.jsonl", "split.json", "examples.npz"}


def in_a_list(files: list[Path]) -> object:
    return [(file, file.parent.name) for file in files]


def in_jsonl(files: list[Path]) -> object:
    rows = [{"image": str(file), "label": file.parent.name} for file in files]
    table = files[0].parents[1] / "table.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return table


def in_parquet(files: list[Path]) -> object:
    table = pa.table({"image": [file.read_bytes() for file in files], "label": [file.parent.name for file in files]})
    pq.write_table(table, files[0].parents[1] / "table.parquet")
    return files[0].parents[1] / "table.parquet"


@pytest.mark.parametrize("owned_of", [in_a_list, in_jsonl, in_parquet])
def test_agent_keeps_no_more_pictures_in_memory_the_more_there_are_wherever_they_are(
    tmp_path: Path, owned_of: Callable[[list[Path]], object]
) -> None:
    """As above, of what names or holds pictures."""
    files = [tmp_path / "ab"[number % 2] / f"{number}.png" for number in range(200)]
    for number, file in enumerate(files):
        file.parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4), (number, 0, 0)).save(file)
    (tmp_path / "state").mkdir()
    owned = owned_of(files)
    tracemalloc.start()
    try:
        store = ExampleStore(owned, tmp_path / "state", share=0.5, seed=1)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 22e6
    assert isinstance(store.held_out, ArrayExamples)
    assert isinstance(store.held_out.values, np.memmap)
    assert store.held_out.labels


def test_pictures_that_came_one_by_one_are_read_to_the_disk(tmp_path: Path) -> None:
    store = ExampleStore((), tmp_path, share=0.5, seed=1, image_size=4)
    for number in range(6):
        store.learn((Image.new("RGB", (4, 4), (number, 0, 0)), "ab"[number % 2]))
    store.refresh()
    assert isinstance(store.held_out, ArrayExamples)
    assert isinstance(store.held_out.values, np.memmap)


def test_pixels_among_other_values_are_refused(tmp_path: Path) -> None:
    rows = [{"x": np.zeros((4, 4, 3), dtype), "y": "a"} for dtype in (np.uint8, np.float32)]
    with pytest.raises(DataFormatError, match=r"row 2 has values of the shape \(4, 4, 3\), row 1 has pixels of"):
        source_of(rows, scratch=tmp_path).read()


def test_pictures_on_disk_are_those_in_memory(folder: Path, tmp_path: Path) -> None:
    in_memory, on_disk = read_examples(folder, 10), read_examples(folder, 10, tmp_path)
    for examples in (on_disk, on_disk.take(range(4)), joined(on_disk.take([0]), in_memory.take([1, 2, 3]))):
        np.testing.assert_array_equal(examples.values, in_memory.values)
        assert examples.labels == in_memory.labels
        assert isinstance(examples.values, np.memmap)
    assert len(on_disk.take([])) == 0


def test_disk_that_refuses_the_pictures_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="nowhere"):
        read_examples(folder, 10, tmp_path / "nowhere")


def test_folder_that_changes_has_another_version(folder: Path) -> None:
    source = source_of(folder, 4)
    before = source.version()
    Image.new("RGB", (5, 5)).save(folder / "cat" / "c.png")
    assert source.version() != before
    assert len(source.read()) == 5


def test_folders_that_hold_no_pictures(tmp_path: Path) -> None:
    with pytest.raises(DataFormatError, match="has no pictures; it needs one folder per label"):
        read_examples(tmp_path)
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.jpg").write_bytes(b"\xff\xd8\xff\xe0 torn")
    with pytest.raises(DataFormatError, match=r"a\.jpg has a picture that cannot be read"):
        read_examples(tmp_path)


@pytest.mark.parametrize("on_disk", [False, True])
def test_picture_that_cannot_be_read_is_left_out_and_named(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, on_disk: bool
) -> None:
    whole = read_examples(folder, 10)
    file = min(folder.glob("cat/*"))
    file.write_bytes(file.read_bytes()[:60])
    examples = read_examples(folder, 10, tmp_path if on_disk else None)
    assert examples.labels == whole.labels[1:]
    assert np.array_equal(examples.values, whole.values[1:])
    assert f"left out 1 of 4 pictures: {file} has a picture that cannot be read" in caplog.text
