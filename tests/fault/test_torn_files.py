"""R3: a file that a loss of power, or a worn-out card, has cut short or garbled is never taken for what it was."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from coordinator.models.permutation import LayerOrder
from coordinator.models.versions import Ordering, load_version, save_version
from coordinator.store.database import Store
from coordinator.store.opening import open_store
from edge_sdk.elastic.submodel import TrainablePart
from edge_sdk.errors import BlobCorruptError, RaffmError, StorageError
from edge_sdk.inference.slots import Slots
from edge_sdk.protocol.blobs import digest_of
from edge_sdk.protocol.messages import GRAIN_BYTES
from edge_sdk.storage.outbox import Outbox
from edge_sdk.transport.blob_folder import BlobFolder
from tests.support import bert
from tests.support.proof import Proof
from tests.unit.inference.test_slots import PARTS, release

MESSAGES = 12
GRAINS = 5


def tear(path: Path, chance: random.Random) -> None:
    """Cut the file, change a byte, or lose what a block of the disk held, from a random offset on."""
    data, offset = bytearray(path.read_bytes()), chance.randrange(path.stat().st_size)
    match chance.choice(("cut", "flip", "zeros", "noise")):
        case "cut":
            del data[offset:]
        case "flip":
            data[offset] ^= 1 << chance.randrange(8)
        case "zeros":
            data[offset : offset + 512] = bytes(len(data[offset : offset + 512]))
        case _:
            data[offset : offset + 512] = chance.randbytes(len(data[offset : offset + 512]))
    path.unlink()  # the bytes of another file may be the same ones
    path.write_bytes(data)


def wrong_loads(
    proof: Proof, original: Path, scratch: Path, of: Callable[[Path], Iterator[Path]], load: Callable[[Path], bool]
) -> int:
    """How often what was loaded from a torn copy of ``original`` is neither right nor refused by name."""
    wrong = 0
    for seed in proof.seeds(short=15, full=250):
        chance, folder = random.Random(seed), scratch / f"torn-{seed}"
        shutil.copytree(original, folder)
        tear(chance.choice(sorted(of(folder))), chance)
        with suppress(RaffmError):
            wrong += not load(folder)
        shutil.rmtree(folder)
    return wrong


def payload(number: int) -> bytes:
    return random.Random(number).randbytes(700)


def copy_in_use(source: Path, target: Path) -> None:
    """As a loss of power leaves it: nothing closed."""
    shutil.copytree(source, target)
    for shared in target.glob("*-shm"):  # lives in memory
        shared.unlink()


def test_torn_log_of_the_outbox_keeps_a_beginning(tmp_path: Path, proof: Proof) -> None:
    with closing(Outbox(tmp_path / "used" / "o.sqlite", first_pause_s=1, max_pause_s=1)) as outbox:
        for number in range(MESSAGES):
            outbox.put(str(number), payload(number))
        copy_in_use(tmp_path / "used", tmp_path / "original")

    def is_beginning(folder: Path) -> bool:
        with closing(Outbox(folder / "o.sqlite", first_pause_s=1, max_pause_s=1)) as torn:
            found = torn.pending()
            torn.put("after", b"")  # it goes on
        return found == [(str(number), payload(number)) for number in range(len(found))]

    wrong = wrong_loads(proof, tmp_path / "original", tmp_path, lambda folder: folder.glob("*-wal"), is_beginning)
    proof.show("R3", "wrong loads of a torn log, outbox", wrong, at_most=0)


def test_torn_log_of_the_store_keeps_a_beginning(tmp_path: Path, proof: Proof) -> None:
    store = open_store(tmp_path / "used")
    for number in range(MESSAGES):
        with store.transaction() as tx:
            tx.tasks.add(f"{number:02}", payload(number), float(number))
    copy_in_use(tmp_path / "used", tmp_path / "original")
    store.close()

    def is_beginning(folder: Path) -> bool:
        with closing(open_store(folder)) as torn:
            found = tasks_of(torn)
        return found == [(f"{number:02}", payload(number)) for number in range(len(found))]

    wrong = wrong_loads(proof, tmp_path / "original", tmp_path, lambda folder: folder.glob("*-wal"), is_beginning)
    proof.show("R3", "wrong loads of a torn log, store", wrong, at_most=0)


def tasks_of(store: Store) -> list[tuple[str, bytes]]:
    with store.reading() as tx:
        return [(task.name, task.config) for task in tx.tasks.all()]


def test_torn_slot_is_refused(tmp_path: Path, proof: Proof) -> None:
    slots, right = Slots(tmp_path / "original"), {}
    for number in (1, 2):
        manifest, files = release(tmp_path, number)
        slots.stage(manifest, files)
        slots.switch()
        right[number] = manifest, {part: files[part].read_bytes() for part in PARTS}

    def is_a_release(folder: Path) -> bool:
        try:
            slot = Slots(folder).current()
        except BlobCorruptError:
            slot = Slots(folder).rollback()
        return slot is not None and right[slot.manifest.release] == (
            slot.manifest,
            {part: slot.path(part).read_bytes() for part in PARTS},
        )

    def files(folder: Path) -> Iterator[Path]:
        return (path for path in folder.rglob("*") if path.is_file())

    wrong = wrong_loads(proof, tmp_path / "original", tmp_path, files, is_a_release)
    proof.show("R3", "wrong loads of a torn slot", wrong, at_most=0)


def test_torn_version_of_a_model_is_refused(tmp_path: Path, proof: Proof) -> None:
    """It was trained on from the next start on, saved, released; where a file was missing, the coordinator ended."""
    family, parameters = bert.family(bert.TINY), bert.weights(bert.TINY, 0)
    orders = [LayerOrder.of(range(bert.TINY.heads), range(bert.TINY.ffn))] * bert.TINY.layers
    ordering = Ordering.of(orders, (*range(bert.TINY.layers),))
    part = TrainablePart.NO_EMBEDDINGS
    saved = save_version(BlobFolder(tmp_path / "original"), 3, parameters, ordering, family, part)

    def is_right(folder: Path) -> bool:
        found = load_version(BlobFolder(folder), 3, saved.blobs)
        same = all((found.parameters[name] == values).all() for name, values in parameters.items())
        return same and found.ordering == ordering

    wrong = wrong_loads(proof, tmp_path / "original", tmp_path, Path.iterdir, is_right)
    proof.show("R3", "wrong loads of a torn version of a model", wrong, at_most=0)
    BlobFolder(tmp_path / "original").delete(saved.blobs[0].digest)
    with pytest.raises(StorageError, match="cannot be read"):
        is_right(tmp_path / "original")


def half_fetched(folder: Path, data: bytes) -> BlobFolder:
    """A folder in which all but the last grain of a blob has come."""
    blobs = BlobFolder(folder)
    partial = blobs.open_partial(digest_of(data), len(data))
    for start in range(0, len(data) - GRAIN_BYTES, GRAIN_BYTES):
        partial.write(start, data[start : start + GRAIN_BYTES])
    partial.close()
    return blobs


def finished(folder: Path, data: bytes) -> bytes:
    """What becomes of it once the rest has come; raises ``BlobCorruptError``."""
    blobs = BlobFolder(folder)
    partial = blobs.open_partial(digest_of(data), len(data))
    for grain in list(partial.missing()):
        offset = grain * GRAIN_BYTES
        partial.write(offset, data[offset : offset + GRAIN_BYTES])
    partial.commit()
    return blobs.path_of(digest_of(data)).read_bytes()


def test_torn_blob_is_fetched_again(tmp_path: Path, proof: Proof) -> None:
    data = random.Random(0).randbytes(GRAINS * GRAIN_BYTES - 5)
    half_fetched(tmp_path / "original", data)

    def is_right(folder: Path) -> bool:
        return finished(folder, data) == data

    wrong = wrong_loads(proof, tmp_path / "original", tmp_path, Path.iterdir, is_right)
    proof.show("R3", "wrong loads of a torn blob", wrong, at_most=0)


def test_torn_slot_without_its_digests_is_taken(tmp_path: Path, proof: Proof, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: it is the digest that finds a torn file out."""
    monkeypatch.setattr("edge_sdk.inference.slots._holds", lambda *_: True)
    with pytest.raises(AssertionError, match="wrong loads"):
        test_torn_slot_is_refused(tmp_path, proof.aside)
