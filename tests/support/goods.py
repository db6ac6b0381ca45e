"""What a scripted coordinator has to give: an offer to train the logistic classifier, and releases of it."""

from __future__ import annotations

from pathlib import Path

from edge_sdk.elastic.submodel import TrainablePart
from edge_sdk.protocol.messages import BlobEntry, Offer, Part, Release
from edge_sdk.protocol.releases import Trial
from edge_sdk.transport.blob_folder import BlobFolder
from tests.support import logistic_graph
from tests.support.logistic_graph import LABELS, inference_model, parameters, tokenizer_json
from tests.support.signed import NO_TRIAL, TASK, Signers, export, write_root_file

__all__ = ["TASK", "Goods"]


class Goods:
    """Blobs in ``<folder>/coordinator`` for ``device``, which trusts ``<folder>/root.json``."""

    def __init__(self, folder: Path, device: str, labels: tuple[str, ...] = LABELS) -> None:
        self.blobs = BlobFolder(folder / "coordinator")
        self.signers = Signers()
        self.root = write_root_file(folder / "root.json", self.signers.root_envelope())
        self._folder, self._device, self._labels = folder, device, labels
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

    def release(self, number: int, *, trial: Trial = NO_TRIAL, assignment: int | None = None) -> Release:
        """Each of other weights; assigned under its own number, or another."""
        model = inference_model(parameters(number)).SerializeToString()
        parts = (self._entry(Part.INFERENCE_MODEL, model), self._entry(Part.TOKENIZER, tokenizer_json()))
        manifest = self.signers.manifest(
            number, labels=self._labels, exports=(export(manifest=parts, submodel=self._job.submodel),)
        )
        return self.signers.message(manifest, device=self._device, trial=trial, number=assignment or number)

    def _entry(self, part: Part, data: bytes) -> BlobEntry:
        return BlobEntry(part=part, digest=self.blobs.put_bytes(data), size_bytes=len(data))
