"""What a scripted coordinator has to give: an offer to train the logistic classifier, and releases of it."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_sdk.elastic.submodel import TrainablePart
from edge_sdk.protocol.messages import BlobEntry, Offer, Part, Release
from edge_sdk.protocol.signing import ReleaseManifest, Role, sign
from edge_sdk.transport.blob_folder import BlobFolder
from tests.support import logistic_graph
from tests.support.logistic_graph import LABELS, inference_model, parameters, tokenizer_json

TASK = "task"


class Goods:
    """Blobs in ``<folder>/coordinator`` for ``device``; the key that signs releases is ``<folder>/release.pub``."""

    def __init__(self, folder: Path, device: str, labels: tuple[str, ...] = LABELS) -> None:
        self.blobs = BlobFolder(folder / "coordinator")
        self.public_key = folder / "release.pub"
        self._folder, self._device, self._labels = folder, device, labels
        self._key = Ed25519PrivateKey.generate()
        self.public_key.write_text(self._key.public_key().public_bytes_raw().hex())
        (folder / "job").mkdir()
        self._job = logistic_graph.training_job(folder / "job")

    def offer(self) -> Offer:
        """Round 1."""
        job = self._job
        parts = {
            Part.WEIGHTS: job.weights,
            Part.FROZEN: job.frozen,
            Part.TRAINING_GRAPH: job.graph,
            Part.TOKENIZER: job.tokenizer,
        }
        return Offer(
            task=TASK,
            round=1,
            base_version="a" * 64,
            architecture=job.architecture,
            submodel=job.submodel,
            part=TrainablePart.NO_EMBEDDINGS,
            labels=self._labels,
            recipe=job.recipe,
            deadline_s=60.0,
            predicted_memory_bytes=1,
            manifest=tuple(self._entry(part, Path(path).read_bytes()) for part, path in parts.items()),
        )

    def release(self, number: int) -> Release:
        """Each of other weights."""
        model = inference_model(parameters(number)).SerializeToString()
        manifest = ReleaseManifest(
            release=number,
            fleet="default",
            device=self._device,
            task=TASK,
            submodel=self._job.submodel,
            labels=self._labels,
            max_tokens=16,
            manifest=(self._entry(Part.INFERENCE_MODEL, model), self._entry(Part.TOKENIZER, tokenizer_json())),
        )
        return Release(envelope=sign(self._key, Role.RELEASE, manifest))

    def _entry(self, part: Part, data: bytes) -> BlobEntry:
        return BlobEntry(part=part, digest=self.blobs.put_bytes(data), size_bytes=len(data))
