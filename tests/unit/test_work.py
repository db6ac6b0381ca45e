"""What becomes of an offer on a device, where the disk does not do as it should."""

from __future__ import annotations

from pathlib import Path

from edge_sdk.config import AgentConfig
from edge_sdk.elastic.submodel import Architecture, Submodel, TrainablePart
from edge_sdk.protocol.messages import Offer, Recipe
from edge_sdk.storage.cache import BlobCache
from edge_sdk.storage.outbox import Outbox
from edge_sdk.training.job import TrainingResult
from edge_sdk.work import Updates

OFFER = Offer(
    task="t",
    round=1,
    base_version="d" * 64,
    architecture=Architecture("bert", 1, 1, 4, 4, 4, 10, 16, 2),
    submodel=Submodel((0,), (1,), (4,)),
    part=TrainablePart.NO_EMBEDDINGS,
    labels=("x", "y"),
    recipe=Recipe(learning_rate=1e-4, batch_size=4, epochs=1, max_tokens=16),
    deadline_s=60.0,
    predicted_memory_bytes=1,
    manifest=(),
)
RESULT = TrainingResult(samples=1, steps=1, loss_first=1.0, loss_last=0.5, seconds=1.0, peak_memory_bytes=1)


def test_update_is_stored_though_its_checkpoint_cannot_be_removed(tmp_path: Path) -> None:
    (tmp_path / "update.safetensors").write_bytes(b"an update")
    (tmp_path / "checkpoint.safetensors" / "in the way").mkdir(parents=True)
    outbox = Outbox(tmp_path / "outbox.sqlite", first_pause_s=1, longest_pause_s=1)
    cache = BlobCache(tmp_path / "blobs", 1 << 20, keep_free_bytes=0)
    updates = Updates(AgentConfig(device="d", broker="", state_dir=tmp_path), outbox, cache)
    message = updates.store(OFFER, RESULT, downloaded_bytes=0, battery_share=None)
    assert updates.pending() == [message]
    assert cache.has(message.update.digest)
    outbox.close()
