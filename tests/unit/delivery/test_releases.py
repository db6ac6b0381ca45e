"""What a release says, and what it takes to approve it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.delivery.approving import (
    approve,
    is_approved,
    known_release,
    manifest_of,
    read_signed,
    record_release,
    sign_manifest,
    signatures_by,
    write_manifest,
)
from coordinator.delivery.roots import install_root
from coordinator.store.database import Store
from edge_sdk.elastic.submodel import Submodel
from edge_sdk.errors import ConfigurationError
from edge_sdk.protocol.messages import MAX_MESSAGE_BYTES, Recipe
from edge_sdk.protocol.releases import MAX_EXPORTS, Precision
from edge_sdk.protocol.signing import Role, seal
from tests.support.signed import FLEET, TASK, Signers, export, write_root_file

RECIPE = Recipe(
    learning_rate=0.1, batch_size=1, epochs=1, max_tokens=8, pixel_mean=(0.1, 0.2, 0.3), pixel_std=(0.4, 0.5, 0.6)
)
ANN, BOB, EVE = (Ed25519PrivateKey.generate() for _ in range(3))
SIGNERS = Signers(release=[ANN, BOB], thresholds={"release": 2})


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """With a root that takes two signatures, and a release that nobody has signed."""
    store = Store("sqlite://")
    file = write_root_file(tmp_path / "first.json", SIGNERS.root_envelope())
    install_root(store, tmp_path, file, 1.0, "test")
    with store.transaction() as tx:
        tx.tasks.add(TASK, b"", 1.0)
    recorded(store)
    yield store
    store.close()


def recorded(store: Store, count: int = 1) -> int:
    exports = [export(f"m{number}") for number in range(count)]
    with store.transaction() as tx:
        names = {"labels": ("a", "b"), "fleet": FLEET, "groups": ("canary",), "now_s": 5.0, "days": 2.0}
        return record_release(tx, TASK, (3, "ab" * 32), exports, RECIPE, **names)


def test_release_says_how_its_recipe_scales_pixels_and_until_when_it_is_good(store: Store) -> None:
    with store.reading() as tx:
        manifest = manifest_of(known_release(tx, 1))
    assert (manifest.pixel_mean, manifest.pixel_std) == (RECIPE.pixel_mean, RECIPE.pixel_std)
    assert (manifest.release, manifest.groups, manifest.expires_s) == (1, ("canary",), 5.0 + 2 * 86400)


def test_release_is_approved_once_two_different_keys_have_signed(store: Store) -> None:
    with store.transaction() as tx:
        record = known_release(tx, 1)
        for _ in range(2):
            assert approve(tx, 1, signatures_by(record, [ANN]), 6.0, "ann") == (1, 2)
        assert not is_approved(tx, known_release(tx, 1))
        assert approve(tx, 1, signatures_by(record, [BOB]), 7.0, "bob") == (2, 2)
        assert is_approved(tx, known_release(tx, 1))
        assert [entry.who for entry in tx.audit.newest(2)] == ["bob", "ann"]


def test_key_that_is_no_release_key_approves_nothing(store: Store) -> None:
    for key in (EVE, *SIGNERS.round, *SIGNERS.root):
        with pytest.raises(ConfigurationError, match="is not a release key"), store.transaction() as tx:
            approve(tx, 1, signatures_by(known_release(tx, 1), [key]), 6.0, "eve")


def test_signature_of_another_release_approves_nothing(store: Store) -> None:
    other = recorded(store)
    with pytest.raises(ConfigurationError, match="does not hold"), store.transaction() as tx:
        approve(tx, 1, signatures_by(known_release(tx, other), [ANN]), 6.0, "ann")


def test_release_is_signed_on_a_machine_without_the_store(store: Store, tmp_path: Path) -> None:
    write_manifest(store, 1, tmp_path / "release-1.json")
    files = [sign_manifest(tmp_path / "release-1.json", key)[1] for key in (ANN, BOB)]
    with store.transaction() as tx:
        for file in files:
            approve(tx, 1, read_signed(file).signatures, 6.0, "test")
        assert is_approved(tx, known_release(tx, 1))


def test_approval_ends_where_a_root_takes_its_keys_away(store: Store, tmp_path: Path) -> None:
    with store.transaction() as tx:
        approve(tx, 1, signatures_by(known_release(tx, 1), [ANN, BOB]), 6.0, "test")
    new = Signers(root=SIGNERS.root, release=[ANN, EVE], round=SIGNERS.round, thresholds={"release": 2}, version=2)
    install_root(store, tmp_path, write_root_file(tmp_path / "second.json", new.root_envelope()), 7.0, "test")
    with store.transaction() as tx:
        assert not is_approved(tx, known_release(tx, 1))
        assert approve(tx, 1, signatures_by(known_release(tx, 1), [EVE]), 8.0, "eve") == (2, 2)


@pytest.mark.parametrize("count", [2, 40, 200])
@pytest.mark.parametrize("labels", [("a", "b"), tuple(f"{number:016}" for number in range(1000))], ids=["few", "many"])
def test_release_has_as_many_submodels_as_fit_evenly_spaced(store: Store, labels: tuple[str, ...], count: int) -> None:
    """A task with hundreds of labels, or with a fleet of many sizes, failed once it was trained."""
    submodels = [Submodel((*range(6),), (12,) * 6, (ffn,) * 6) for ffn in range(3000, 3000 - count, -1)]
    both = [
        export(f"m{number}-{precision.value}", submodel=submodel, precision=precision)
        for number, submodel in enumerate(submodels)
        for precision in (Precision.INT8, Precision.FP32)
    ]
    with store.transaction() as tx:
        names = {"labels": labels, "fleet": FLEET, "groups": (), "now_s": 5.0, "days": 2.0}
        release = record_release(tx, TASK, (3, "ab" * 32), both, RECIPE, **names)
        record = known_release(tx, release)
    exports = manifest_of(record).exports
    kept = [*dict.fromkeys(it.submodel for it in exports)]
    assert len(exports) == 2 * len(kept)
    assert len(seal(Role.RELEASE, record.manifest, *signatures_by(record, [ANN, BOB]))) < MAX_MESSAGE_BYTES / 2
    assert (kept[0], kept[-1]) == (submodels[0], submodels[-1])
    steps = {submodels.index(b) - submodels.index(a) for a, b in pairwise(kept)}
    assert max(steps) - min(steps) <= 1
    assert len(kept) == count or len(exports) > MAX_EXPORTS - 2 or len(record.manifest) > MAX_MESSAGE_BYTES / 2 - 5000


def test_release_that_does_not_fit_into_a_message_is_not_recorded(store: Store) -> None:
    with pytest.raises(ConfigurationError, match="name fewer"):
        recorded(store, 64 * 3)
    with store.reading() as tx:
        assert len(tx.releases.all()) == 1
