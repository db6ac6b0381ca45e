from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_sdk.elastic.submodel import Submodel
from edge_sdk.errors import BlobCorruptError, StorageError
from edge_sdk.inference import slots as slots_module
from edge_sdk.inference.slots import Slots
from edge_sdk.protocol.blobs import digest_of
from edge_sdk.protocol.messages import BlobEntry, Part
from edge_sdk.protocol.releases import ReleasedModel

PARTS = (Part.INFERENCE_MODEL, Part.TOKENIZER)


@pytest.fixture
def slots(tmp_path: Path) -> Slots:
    return Slots(tmp_path / "slots")


def release(tmp_path: Path, number: int) -> tuple[ReleasedModel, dict[Part, Path]]:
    """A manifest and the files that it names."""
    files, entries = {}, []
    for part in PARTS:
        data = f"{part.value} of release {number}".encode()
        files[part] = tmp_path / f"{part.value}-{number}"
        files[part].write_bytes(data)
        entries.append(BlobEntry(part=part, digest=digest_of(data), size_bytes=len(data)))
    manifest = ReleasedModel(
        release=number,
        task="task",
        submodel=Submodel((0,), (1,), (4,)),
        labels=("a", "b"),
        max_tokens=8,
        manifest=tuple(entries),
    )
    return manifest, files


def current_release(slots: Slots) -> int | None:
    slot = slots.current()
    return None if slot is None else slot.manifest.release


def test_slots_are_empty_before_the_first_release(slots: Slots, tmp_path: Path) -> None:
    assert slots.current() is None
    slots.stage(*release(tmp_path, 1))
    assert slots.current() is None
    with pytest.raises(BlobCorruptError):
        Slots(tmp_path / "others").rollback()


def test_slots_switch_and_roll_back(slots: Slots, tmp_path: Path) -> None:
    for number in (1, 2, 3):
        staged = slots.stage(*release(tmp_path, number))
        assert staged.manifest.release == number
        assert slots.switch() == staged == slots.current()
        assert staged.path(Part.TOKENIZER).read_bytes() == f"tokenizer of release {number}".encode()
    assert slots.rollback().manifest.release == 2
    assert current_release(Slots(tmp_path / "slots")) == 2


def test_slots_stage_never_touches_the_current_slot(slots: Slots, tmp_path: Path) -> None:
    slots.stage(*release(tmp_path, 1))
    folder = slots.switch().folder
    before = {path.name: (path.stat().st_ino, path.read_bytes()) for path in folder.iterdir()}
    for number in (2, 3):
        slots.stage(*release(tmp_path, number))
    assert {path.name: (path.stat().st_ino, path.read_bytes()) for path in folder.iterdir()} == before
    assert current_release(slots) == 1


@pytest.mark.parametrize("damaged", ["inference-model", "tokenizer", "slot.json"])
@pytest.mark.parametrize("damage", ["changed", "cut", "gone"])
def test_slots_refuse_a_damaged_slot(slots: Slots, tmp_path: Path, damaged: str, damage: str) -> None:
    slots.stage(*release(tmp_path, 1))
    slots.switch()
    path = slots.stage(*release(tmp_path, 2)).folder / damaged
    data = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes(data[:-1] if damage == "cut" else data[:-1] + b"!")
    with pytest.raises(BlobCorruptError):
        slots.switch()
    assert current_release(slots) == 1


def test_slots_refuse_a_current_slot_that_was_damaged(slots: Slots, tmp_path: Path) -> None:
    slots.stage(*release(tmp_path, 1))
    folder = slots.switch().folder
    (folder / "tokenizer").unlink()
    (folder / "tokenizer").write_bytes(b"tokenizer of release 9")
    with pytest.raises(BlobCorruptError, match="damaged files: tokenizer"):
        slots.current()


def test_slots_refuse_a_manifest_whose_label_was_damaged(slots: Slots, tmp_path: Path) -> None:
    path = slots.stage(*release(tmp_path, 1)).folder / "slot.json"
    path.write_bytes(path.read_bytes().replace(b'["a","b"]', b'["a","c"]'))
    with pytest.raises(BlobCorruptError, match="its digest is another one"):
        slots.switch()


@pytest.mark.parametrize("ending", [b"", b"\n"], ids=["cut", "line-alone"])
def test_slots_refuse_a_manifest_without_its_digest(slots: Slots, tmp_path: Path, ending: bytes) -> None:
    path = slots.stage(*release(tmp_path, 1)).folder / "slot.json"
    path.write_bytes(path.read_bytes().partition(b"\n")[0] + ending)
    with pytest.raises(BlobCorruptError, match="its digest is another one"):
        slots.switch()


def test_slots_whose_letter_was_damaged_say_so_and_can_go_back(slots: Slots, tmp_path: Path) -> None:
    for number in (1, 2):
        slots.stage(*release(tmp_path, number))
        slots.switch()
    (tmp_path / "slots" / "current").write_bytes(b"\xe1")
    with pytest.raises(BlobCorruptError, match="names no slot"):
        slots.current()
    assert slots.rollback().manifest.release == 1
    assert current_release(slots) == 1


def test_slots_refuse_a_file_of_another_release(slots: Slots, tmp_path: Path) -> None:
    manifest, _ = release(tmp_path, 1)
    with pytest.raises(BlobCorruptError):
        slots.stage(manifest, release(tmp_path, 2)[1])


def test_slots_report_a_file_that_is_missing(slots: Slots, tmp_path: Path) -> None:
    manifest, files = release(tmp_path, 1)
    files[Part.TOKENIZER].unlink()
    with pytest.raises(StorageError, match="release 1 cannot be stored"):
        slots.stage(manifest, files)


def test_slots_copy_where_they_cannot_link(slots: Slots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_source: Path, _target: Path) -> None:
        raise OSError(18, "Invalid cross-device link")

    manifest, files = release(tmp_path, 1)
    linked = slots.stage(manifest, files).path(Part.TOKENIZER)
    assert linked.samefile(files[Part.TOKENIZER])
    monkeypatch.setattr(slots_module.os, "link", refuse)
    copied = slots.stage(manifest, files).path(Part.TOKENIZER)
    assert not copied.samefile(files[Part.TOKENIZER])


class PowerLossError(BaseException):
    """The machine stops here."""


@pytest.mark.parametrize("stop_at", range(40))
def test_slots_hold_a_whole_release_after_power_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    """Stop before the nth change to the disk: what is current then is release 1 or release 2, whole."""
    slots = Slots(tmp_path / "slots")
    slots.stage(*release(tmp_path, 1))
    slots.switch()
    manifest, files = release(tmp_path, 2)
    calls = iter(range(1000))

    def stopping(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if next(calls) == stop_at:
                raise PowerLossError
            return function(*args, **kwargs)

        return call

    finished = False
    with monkeypatch.context() as patch:
        for name in ("link", "fsync", "mkdir", "unlink", "replace", "rename"):
            patch.setattr(os, name, stopping(getattr(os, name)))
        try:
            slots.stage(manifest, files)
            slots.switch()
            finished = True
        except PowerLossError:
            pass
    assert current_release(Slots(tmp_path / "slots")) in ({2} if finished else {1, 2})
    again = Slots(tmp_path / "slots")
    again.stage(manifest, files)
    if not finished and current_release(again) == 1:
        assert again.switch().manifest.release == 2
