"""Pictures as small arrays. They are converted one by one, so only one is ever in memory at its full size.

Needs Pillow, the extra ``images``. A picture is cropped around its centre to the wanted aspect ratio, then resized.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edge_sdk.data.examples import ArrayExamples
from edge_sdk.data.mapped import mapped
from edge_sdk.errors import ConfigurationError, DataFormatError

if TYPE_CHECKING:
    from PIL.Image import Image

_log = logging.getLogger(__name__)
IMAGE_SIZE = 224
"""Pixels a side that most vision transformers were trained with (arXiv 2010.11929)."""
_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
_MODES = {1: "L", 3: "RGB"}
IMAGE_CHANNELS = frozenset(_MODES)
"""The numbers of channels that an image may have to be resized."""
_LARGEST = {"F": 255, "I": 0xFFFF}  # the largest value of a picture of floats, and of integers
Pixels = NDArray[np.uint8]


def read_image_folder(folder: Path, size: int = IMAGE_SIZE, scratch: Path | None = None) -> ArrayExamples:
    """The pictures in ``folder/<label>/``, sorted by name, as uint8 (pictures, size, size, 3).

    A picture that cannot be read, as after a power cut, is left out, and the log names it. With ``scratch``, a folder,
    they are kept on its disk, not in memory. Raises ``DataFormatError`` if there are none, or if none can be read, and
    ``ConfigurationError`` without Pillow.
    """
    files = image_files(folder)
    if not files:
        raise DataFormatError(
            f"{folder} has no pictures; it needs one folder per label, with .jpg or .png files inside"
        )
    labels: list[str] = []
    pictures = _readable(files, size, labels)
    values = np.stack([*pictures]) if scratch is None else mapped(pictures, scratch)
    return ArrayExamples(values, tuple(labels))


def image_files(folder: Path) -> list[Path]:
    """The pictures of every label, sorted; hidden files, such as a camera's thumbnails, are left out."""
    found = (file for file in folder.glob("*/*") if file.suffix.lower() in _SUFFIXES)
    return sorted(file for file in found if not file.name.startswith(".") and not file.parent.name.startswith("."))


def _readable(files: Sequence[Path], size: int, labels: list[str]) -> Iterator[Pixels]:
    """The pictures that can be read, the label of each added to ``labels``; the first error where none can."""
    errors: list[DataFormatError] = []
    for file in files:
        picture = _picture_or_error(file, size)
        if isinstance(picture, DataFormatError):
            errors.append(picture)
        else:
            labels.append(file.parent.name)
            yield picture
    if not labels:
        raise errors[0]
    if errors:
        _log.warning("left out %d of %d pictures: %s", len(errors), len(files), errors[0])


def _picture_or_error(file: Path, size: int) -> Pixels | DataFormatError:
    try:
        return small_image(file, size, str(file))
    except DataFormatError as error:
        return error


def small_image(picture: object, size: int, place: str) -> Pixels:
    """One picture as uint8 (size, size, 3).

    ``picture`` is a file's path or bytes, a Pillow image, a uint8 array, or a mapping with ``bytes`` or ``path``.
    Raises ``DataFormatError``, which names ``place``, for anything else and for a broken picture.
    """
    pillow = _pillow()
    with _errors_of(pillow, place), _opened(pillow, picture, place) as image:
        image.draft("RGB", (size, size))  # a JPEG is then decoded at the next larger of its own scales
        upright = _in_bytes(pillow, _upright(pillow, image), place)
        return _fitted(pillow, upright, (3, size, size))


def fit_images(images: Pixels, shape: Sequence[int]) -> Pixels:
    """``images`` (batch, height, width, channels) resized to the ``shape`` (channels, height, width) of a model.

    The result is (batch, height, width, channels). Raises ``ConfigurationError`` without Pillow.
    """
    pillow = _pillow()
    arrays = (image[..., 0] if image.shape[-1] == 1 else image for image in images)
    return np.stack([_fitted(pillow, pillow.Image.fromarray(array), shape) for array in arrays])


def _fitted(pillow: ModuleType, image: Image, shape: Sequence[int]) -> Pixels:
    channels, height, width = shape
    fitted = pillow.ImageOps.fit(image.convert(_MODES[channels]), (width, height))
    return np.asarray(fitted, dtype=np.uint8).reshape(height, width, channels)


def _upright(pillow: ModuleType, image: Image) -> Image:
    """``image`` turned as its EXIF data say, without these: Pillow cannot write again all that cameras write."""
    image.load()
    image.getexif()
    image.info.pop("exif", None)
    return pillow.ImageOps.exif_transpose(image)  # type: ignore[no-any-return]


def _in_bytes(pillow: ModuleType, image: Image, place: str) -> Image:
    """A picture of 16 bits, integers or floats a pixel, scaled to 8 bits, where Pillow would clip.

    By its mode alone it cannot be known which value is white in the latter two. Floats up to 1 are shares of white, as
    elsewhere, integers above 255 have 16 bits, and all else is taken as it is. Raises ``DataFormatError`` for a picture
    with values that none of these has.
    """
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image)
    largest = _LARGEST["F" if image.mode == "F" else "I"]
    if not ((values >= 0) & (values <= largest)).all():  # neither holds of nan
        raise DataFormatError(
            f"{place} has a picture of mode {image.mode} with values from {values.min():g} to {values.max():g}, which "
            f"may be from 0 to {largest}; scale them, or convert it to 8 bits"
        )
    if image.mode == "F":
        values = values * 255 if values.max() <= 1 else values
    elif image.mode != "I" or values.max() > _LARGEST["F"]:
        values = values >> 8
    return pillow.Image.fromarray(values.astype(np.uint8))  # type: ignore[no-any-return]


def _opened(pillow: ModuleType, picture: object, place: str) -> Image:
    if isinstance(picture, Mapping):  # how Hugging Face's Parquet files store a picture
        picture = picture.get("bytes") or picture.get("path")
    opened: Any = None
    if isinstance(picture, pillow.Image.Image):
        opened = picture.copy()
    elif isinstance(picture, str | Path):
        opened = pillow.Image.open(picture)
    elif isinstance(picture, bytes):
        opened = pillow.Image.open(BytesIO(picture))
    elif isinstance(picture, np.ndarray) and picture.dtype == np.uint8:
        opened = pillow.Image.fromarray(picture)
    if opened is None:
        raise DataFormatError(f"{place} has a picture of type {type(picture).__name__}; give a Pillow image or a file")
    return opened  # type: ignore[no-any-return]


@contextmanager
def _errors_of(pillow: ModuleType, place: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, TypeError, SyntaxError, MemoryError, pillow.Image.DecompressionBombError) as error:
        why = getattr(error, "strerror", None) or type(error).__name__  # its text may quote an example taken for a path
        raise DataFormatError(f"{place} has a picture that cannot be read ({why}); replace or remove it") from error


def _pillow() -> ModuleType:
    try:
        import PIL.Image  # noqa: PLC0415 - needed for pictures only
        import PIL.ImageOps  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            "pictures need Pillow, which is not installed: pip install 'raffm-edge[images]'"
        ) from error
    return PIL
