"""What a device is sent as its release."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.delivery.releases import ReleaseDesk
from coordinator.store.records import ReleaseRecord
from coordinator.store.states import ReleaseStatus
from edge_sdk.elastic.submodel import Submodel
from edge_sdk.protocol.messages import Recipe, Release
from edge_sdk.protocol.signing import Role, verify


def test_release_names_how_its_recipe_scales_pixels() -> None:
    recipe = Recipe(
        learning_rate=0.1, batch_size=1, epochs=1, max_tokens=8, pixel_mean=(0.1, 0.2, 0.3), pixel_std=(0.4, 0.5, 0.6)
    )
    run: Any = SimpleNamespace(
        config=SimpleNamespace(name="news", recipe=recipe), foundation=SimpleNamespace(labels=("a", "b"))
    )
    sent: list[Release] = []
    key = Ed25519PrivateKey.generate()
    resources: Any = SimpleNamespace(
        settings=SimpleNamespace(fleet="default"),
        key=key,
        addressed=tuple,
        send=lambda _, message: sent.append(message),
    )
    nothing: Any = None
    desk = ReleaseDesk(run, nothing, nothing, resources, lambda: None)
    desk._sent["pi"] = ReleaseRecord(1, "news", "pi", Submodel((0,), (1,), (1,)), (), ReleaseStatus.SENT)
    assert desk.send("pi")
    (release,) = sent
    manifest = verify(release.envelope, Role.RELEASE, key.public_key().public_bytes_raw())
    assert (manifest.pixel_mean, manifest.pixel_std) == (recipe.pixel_mean, recipe.pixel_std)
