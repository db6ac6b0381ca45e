"""A coordinator killed between two updates of a round gets to the same bytes as one that was not."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import pytest

from coordinator.aggregation.coverage import UpdateSource
from coordinator.config import TaskConfig
from coordinator.models.versions import load_version, save_version, split_part
from edge_sdk.elastic.families import family_of
from edge_sdk.elastic.slicing import slices_of
from edge_sdk.elastic.submodel import TrainablePart
from edge_sdk.transport.blob_folder import BlobFolder
from tests.support.plain_mean import aggregate
from tests.support.small_fleet import ARCHITECTURE, SmallFleet, need_mib

PART = TrainablePart.NO_EMBEDDINGS
FAMILY = family_of(ARCHITECTURE.family)


@contextmanager
def keeping_blobs(blobs: Path, kept: Path) -> Iterator[None]:
    """Link every whole blob to ``kept`` as it appears: the coordinator deletes updates once they are aggregated."""
    kept.mkdir()
    ended = threading.Event()

    def keep() -> None:
        while not ended.wait(0.01):
            for path in blobs.glob("*"):
                if "." not in path.name and not path.name.startswith("put-"):
                    with suppress(FileExistsError, FileNotFoundError):
                        os.link(path, kept / path.name)

    thread = threading.Thread(target=keep)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def accepted(fleet: SmallFleet) -> list[str]:
    return sorted(update.device for update in fleet.read(lambda tx: tx.updates.accepted("news", 1)))


def recomputed_digest(fleet: SmallFleet, kept: Path, scratch: Path) -> str:
    """Version 1, from version 0 and the accepted updates alone."""
    versions = {version.number: version for version in fleet.read(lambda tx: tx.versions.all("news"))}
    base = load_version(BlobFolder(kept), 0, versions[0].blobs)
    shapes = {name: array.shape for name, array in base.parameters.items()}
    submodels = {offer.device: offer.submodel for offer in fleet.read(lambda tx: tx.offers.of_round("news", 1))}
    sources = [
        UpdateSource(
            update.update_id,
            update.weight,
            {
                name: axes
                for name, axes in slices_of(submodels[update.device], ARCHITECTURE, FAMILY, shapes).items()
                if FAMILY.is_trainable(name, PART)
            },
            kept / update.digest,
        )
        for update in fleet.read(lambda tx: tx.updates.accepted("news", 1))
    ]
    trained, frozen = split_part(base.parameters, FAMILY, PART)
    config = msgspec.json.decode(fleet.read(lambda tx: tx.tasks.all())[0].config, type=TaskConfig)
    parameters = aggregate(trained, sources, floor=config.aggregation.floor) | frozen
    return save_version(BlobFolder(scratch), 1, parameters, base.ordering, FAMILY, PART).digest


@pytest.mark.long
def test_coordinator_killed_between_two_updates_aggregates_both_as_if_it_had_not_been(fleet: SmallFleet) -> None:
    fleet.create_task("news", "--rounds", "1", "--min-devices", "2", "--no-release")
    kept = fleet.folder / "kept"
    with keeping_blobs(fleet.state / "blobs", kept):
        fleet.serve()
        fleet.agent("fast", 400)
        fleet.agent("slow", need_mib(2))
        fleet.wait_until(lambda: fleet.read(lambda tx: tx.rounds.collecting("news")), "an open round", pause_s=0.01)
        os.kill(fleet.processes["slow"].pid, signal.SIGSTOP)
        fleet.wait_until(lambda: accepted(fleet), "the first update", pause_s=0.01)
        fleet.kill("coordinator", signal.SIGKILL)
        assert accepted(fleet) == ["fast"]
        fleet.serve()
        os.kill(fleet.processes["slow"].pid, signal.SIGCONT)
        fleet.finish()
    assert accepted(fleet) == ["fast", "slow"]
    version = fleet.read(lambda tx: tx.versions.all("news"))[-1]
    assert version.digest == recomputed_digest(fleet, kept, fleet.folder / "scratch")
