"""A release that takes two signatures and has none, and four devices that could run it; people sign elsewhere."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.delivery.approving import record_release, sign_manifest
from coordinator.delivery.roots import install_root
from coordinator.store.database import Store
from coordinator.store.opening import open_store
from edge_sdk.protocol.messages import Recipe
from tests.support.light_model import light_task
from tests.support.signed import FLEET, Signers, export, write_root_file
from tests.support.simulator import able_device

ANN, BOB, EVE = (Ed25519PrivateKey.generate() for _ in range(3))
"""The first two have release keys."""
TASK = "news"
_SIGNERS = Signers(release=[ANN, BOB], thresholds={"release": 2})
_RECIPE = Recipe(learning_rate=0.1, batch_size=1, epochs=1, max_tokens=8)


def open_with_release(folder: Path, **changes: Any) -> Store:
    """A store in the state folder ``folder``; ``changes`` are to what is recorded of the release."""
    store = open_store(folder)
    install_root(store, folder, write_root_file(folder / "root-1", _SIGNERS.root_envelope()), 1.0, "test")
    with store.transaction() as tx:
        tx.tasks.add(TASK, msgspec.json.encode(light_task(folder, TASK)), 1.0)
        for number in range(4):
            tx.devices.hello(f"d{number}", "board", 1, 1.0)
            tx.devices.seen(f"d{number}", 1.0, able_device())
    add_release(store, **changes)
    return store


def add_release(store: Store, **changes: Any) -> int:
    """Another; its number."""
    own = {"labels": ("a", "b"), "fleet": FLEET, "groups": (), "now_s": time.time(), "days": 2.0}
    exports = changes.pop("exports", [export()])
    with store.transaction() as tx:
        return record_release(tx, TASK, (3, "ab" * 32), exports, _RECIPE, **own | changes)


def signed_by(key: Ed25519PrivateKey, to_sign: bytes, folder: Path) -> bytes:
    """What a person makes of the file ``to_sign``, on a machine with nothing but the key."""
    file = folder / "release.json"
    file.write_bytes(to_sign)
    return sign_manifest(file, key)[1].read_bytes()
