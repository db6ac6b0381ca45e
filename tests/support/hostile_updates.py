"""Updates that must not get in, each of which says why: what a device announces, or what it then sends, is wrong.

    file, message = HOSTILE["cut_short"].harm(update, chance)

An update is right until its harm is done to it, so that whatever is refused is refused for that.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random

import numpy as np

from edge_sdk.elastic.slicing import Array
from edge_sdk.protocol.blobs import digest_of, update_id
from edge_sdk.protocol.encodings import encode
from edge_sdk.protocol.messages import (
    BlobEntry,
    Encoding,
    EncodingKind,
    Part,
    Refusal,
    TrainingReport,
    UpdateReady,
)
from edge_sdk.protocol.tensors import MAX_HEADER_BYTES, Tensors, write_tensors
from tests.security import attacks
from tests.support import mutation

ENCODINGS = tuple(Encoding(kind=kind, share=0.3) for kind in EncodingKind)


@dataclass
class Update:
    """What a device says and sends."""

    device: str
    task: str
    round: int
    base_version: str
    encoding: Encoding
    deltas: dict[str, Array]
    samples: int = 10
    loss: float = 0.5

    def tensors(self) -> Tensors:
        return {name: np.array(values) for name, values in encode(self.deltas, self.encoding, seed=1).items()}

    def message(self, file: bytes, **lies: object) -> UpdateReady:
        """About ``file``, with an id that is right for all of ``lies`` but those about the id itself."""
        entry = BlobEntry(part=Part.WEIGHTS, digest=digest_of(file), size_bytes=len(file))
        report = TrainingReport(
            samples=self.samples,
            steps=1,
            loss_first=1.0,
            loss_last=self.loss,
            seconds=1.0,
            peak_memory_bytes=1,
            downloaded_bytes=1,
            uploaded_bytes=len(file),
            encoding=self.encoding,
        )
        own = {
            "task": self.task,
            "round": self.round,
            "base_version": self.base_version,
            "update": entry,
            "report": report,
        }
        said = own | lies
        named = update_id(self.device, said["task"], said["round"], said["base_version"], said["update"].digest)
        return UpdateReady(**{"update_id": named} | said)


Made = tuple[bytes, UpdateReady]
Harm = Callable[[Update, Random], Made]


@dataclass(frozen=True)
class Hostile:
    """A harm, what it may be refused as, and the only encoding that it can be done to, where there is one."""

    harm: Harm
    refusals: frozenset[Refusal]
    kind: EncodingKind | None = None


HOSTILE: dict[str, Hostile] = {}


def hostile_to(encoding: Encoding) -> list[str]:
    """The names of what can be done to an update in ``encoding``."""
    return [name for name, hostile in HOSTILE.items() if hostile.kind in {None, encoding.kind}]


def _refused_as(*refusals: Refusal, kind: EncodingKind | None = None) -> Callable[[Harm], Harm]:
    def known(harm: Harm) -> Harm:
        HOSTILE[harm.__name__] = Hostile(harm, frozenset(refusals), kind)
        return harm

    return known


def file_of(tensors: Mapping[str, np.ndarray]) -> bytes:
    file = io.BytesIO()
    write_tensors(file, tensors)
    return file.getvalue()


def right(update: Update, _: Random) -> Made:
    """The control: nothing is wrong with it."""
    file = file_of(update.tensors())
    return file, update.message(file)


def _sent(update: Update, file: bytes) -> Made:
    return file, update.message(file)


# -- what is in the file


@_refused_as(Refusal.NOT_FINITE, Refusal.SCALE)
def a_value_that_is_none(update: Update, chance: Random) -> Made:
    tensors = update.tensors()
    floats = [values for values in tensors.values() if values.dtype.kind == "f" and values.size]
    chance.choice(floats).flat[0] = chance.choice((np.nan, np.inf, -np.inf))
    return _sent(update, file_of(tensors))


@_refused_as(Refusal.NORM, Refusal.NOT_FINITE)
def a_huge_norm(update: Update, chance: Random) -> Made:
    factor = np.float32(10.0 ** chance.uniform(5, 30))
    with np.errstate(over="ignore"):
        update.deltas = {name: np.clip(values * factor, -3e38, 3e38) for name, values in update.deltas.items()}
    return _sent(update, file_of(update.tensors()))


@_refused_as(Refusal.TABLE)
def another_shape(update: Update, chance: Random) -> Made:
    tensors = update.tensors()
    name = chance.choice([name for name, values in tensors.items() if values.size > 1])
    tensors[name] = tensors[name].reshape(-1)[: chance.randrange(tensors[name].size)]
    return _sent(update, file_of(tensors))


@_refused_as(Refusal.TABLE)
def another_type(update: Update, chance: Random) -> Made:
    tensors = update.tensors()
    name = chance.choice(list(tensors))
    others = [kind for kind in ("<f4", "<f2", "i1", "<u4", "<i8") if np.dtype(kind) != tensors[name].dtype]
    tensors[name] = np.ones(tensors[name].shape, chance.choice(others))
    return _sent(update, file_of(tensors))


@_refused_as(Refusal.TABLE, Refusal.SIZE)
def a_name_more_less_or_other(update: Update, chance: Random) -> Made:
    tensors = update.tensors()
    name = chance.choice(list(tensors))
    lost = tensors[name] if chance.random() < 0.3 else tensors.pop(name)
    for other in chance.choice(((), (f"{name}\n",), ("../escape",), ("\u202e", "\0"), (f"{name}:scale",))):
        tensors.setdefault(other, lost)
    if name in tensors and len(tensors) == len(update.tensors()):
        del tensors[name]
    return _sent(update, file_of(tensors))


@_refused_as(Refusal.TABLE, Refusal.SIZE)
def a_wider_submodel(update: Update, _: Random) -> Made:
    update.deltas = {name: np.concatenate((values, values)) for name, values in update.deltas.items()}
    return _sent(update, file_of(update.tensors()))


@_refused_as(Refusal.TABLE)
def cut_short(update: Update, chance: Random) -> Made:
    file = file_of(update.tensors())
    return _sent(update, file[: chance.randrange(len(file))])


@_refused_as(Refusal.TABLE, Refusal.SIZE)
def padded(update: Update, chance: Random) -> Made:
    return _sent(update, file_of(update.tensors()) + bytes(chance.choice((1, 8, 4096))))


@_refused_as(Refusal.TABLE, Refusal.SIZE)
def no_tensor_file(update: Update, chance: Random) -> Made:
    return _sent(update, chance.choice((b"", *attacks.TENSOR_FILES)))


@_refused_as(Refusal.TABLE)
def a_garbled_header(update: Update, chance: Random) -> Made:
    file = file_of(update.tensors())
    length = int.from_bytes(file[:8], "little")
    header = file[8 : 8 + length]
    while (torn := mutation.torn(header, chance)).rstrip() == header.rstrip():
        pass
    return _sent(update, len(torn).to_bytes(8, "little") + torn + file[8 + length :] + b"\0" * 3)


@_refused_as(Refusal.TABLE, Refusal.SIZE)
def another_encoding_than_it_says(update: Update, chance: Random) -> Made:
    said = update.encoding
    update.encoding = chance.choice([other for other in ENCODINGS if other != said])
    tensors = update.tensors()
    update.encoding = said
    return _sent(update, file_of(tensors))


@_refused_as(Refusal.INDEX, kind=EncodingKind.TOPK)
def places_that_are_none(update: Update, chance: Random) -> Made:
    tensors = update.tensors()
    name = chance.choice([name for name in tensors if name.endswith(":index") and tensors[name].size > 1])
    places, size = tensors[name], update.deltas[name.removesuffix(":index")].size
    harms = ([*places[:-1], size], [*places[:-1], 2**32 - 1], [0] * places.size, places[::-1])
    tensors[name] = np.array(chance.choice(harms), np.uint32)
    return _sent(update, file_of(tensors))


@_refused_as(Refusal.SCALE, kind=EncodingKind.INT8)
def scales_that_are_none(update: Update, chance: Random) -> Made:
    tensors = update.tensors()
    scales = tensors[chance.choice([name for name in tensors if name.endswith(":scale")])]
    scales[chance.randrange(scales.size)] = chance.choice((np.nan, np.inf, -np.inf, -1e-9, -1.0))
    return _sent(update, file_of(tensors))


# -- what is said about it


@_refused_as(Refusal.REPORT)
def a_loss_that_is_none(update: Update, chance: Random) -> Made:
    update.loss = chance.choice((np.nan, np.inf, -np.inf))
    return right(update, chance)


@_refused_as(Refusal.BASE)
def another_base(update: Update, chance: Random) -> Made:
    file = file_of(update.tensors())
    return file, update.message(file, base_version=f"{chance.getrandbits(256):064x}")


@_refused_as(Refusal.ROUND)
def another_round(update: Update, chance: Random) -> Made:
    file = file_of(update.tensors())
    return file, update.message(file, round=update.round + chance.choice((1, 2, 2**52)))


@_refused_as(Refusal.IDENTITY)
def an_id_of_its_own(update: Update, chance: Random) -> Made:
    file = file_of(update.tensors())
    return file, update.message(file, update_id=f"{chance.getrandbits(256):064x}")


@_refused_as(Refusal.ENCODING)
def an_encoding_that_nobody_asked_for(update: Update, chance: Random) -> Made:
    update.encoding = Encoding(kind=EncodingKind.TOPK, share=chance.uniform(0.5, 1))
    return right(update, chance)


@_refused_as(Refusal.SIZE)
def more_bytes_than_it_may_have(update: Update, chance: Random) -> Made:
    file = file_of(update.tensors())
    size_bytes = len(file) + MAX_HEADER_BYTES + chance.choice((1, 2**20, 2**33))
    entry = BlobEntry(part=Part.WEIGHTS, digest=digest_of(file), size_bytes=size_bytes)
    return file, update.message(file, update=entry)


@_refused_as(Refusal.ROUND)
def a_device_that_was_not_asked(update: Update, chance: Random) -> Made:
    update.device = f"stranger-{chance.getrandbits(40)}"
    return right(update, chance)
