"""What a device makes of an offer: fetched blobs, a job for the training process, an update that no crash can lose."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from pathlib import Path

from edge_sdk.agent.sources import BlobSources
from edge_sdk.config import AgentConfig
from edge_sdk.disk import disk_errors, partial_of
from edge_sdk.elastic.runtimes import Runtime
from edge_sdk.logs import because
from edge_sdk.protocol.blobs import update_id
from edge_sdk.protocol.messages import (
    BlobEntry,
    EncodingKind,
    Offer,
    Part,
    Receipt,
    Snapshot,
    TrainingReport,
    UpdateReady,
    decode_from_device,
    encode,
)
from edge_sdk.storage.cache import BlobCache
from edge_sdk.storage.outbox import Outbox
from edge_sdk.storage.residuals import Residuals
from edge_sdk.training.job import TrainingJob, TrainingResult
from edge_sdk.transport.blob_folder import is_sound

_log = logging.getLogger(__name__)


def job_of(offer: Offer, cache: BlobCache, snapshot: Snapshot, config: AgentConfig, examples: Path) -> TrainingJob:
    """The job of ``offer``, whose blobs are in ``cache``, with the threads and memory that ``snapshot`` allows."""
    paths = {entry.part: str(cache.path_of(entry.digest)) for entry in offer.manifest}
    residual = _residuals(config).before(offer.task, offer.round) if offer.encoding.leaves_residual else None
    return TrainingJob(
        weights=paths[Part.WEIGHTS],
        frozen=paths[Part.FROZEN],
        graph=paths.get(Part.TRAINING_GRAPH, ""),
        config=paths.get(Part.CONFIG, ""),
        tokenizer=paths.get(Part.TOKENIZER, ""),
        runtime=Runtime.ONNX if Part.TRAINING_GRAPH in paths else Runtime.TORCH,
        examples=str(examples),
        update=str(_update_file(config)),
        blobs=tuple(paths.values()),
        checkpoint=str(_checkpoint_file(config)),
        labels=offer.labels,
        recipe=offer.recipe,
        seed=config.seed * 1_000_003 + offer.round,
        threads=snapshot.threads,
        memory_limit_bytes=max(1, snapshot.training_memory_bytes),
        architecture=offer.architecture,
        submodel=offer.submodel,
        nested=offer.nested,
        providers=config.providers,
        mixed_precision=config.mixed_precision,
        gradient_checkpointing=config.gradient_checkpointing,
        encoding=offer.encoding,
        rounding_seed=_rounding_seed(config.device, offer),
        residual=str(residual or ""),
        new_residual=str(_residual_file(config)),
    )


class Updates:
    """The updates of one device that have no receipt yet: blobs in ``cache``, messages in ``outbox``."""

    def __init__(self, config: AgentConfig, outbox: Outbox, cache: BlobCache) -> None:
        self._config, self._outbox, self._cache = config, outbox, cache
        self.forget_leftovers()

    def store(
        self, offer: Offer, result: TrainingResult, *, downloaded_bytes: int, battery_share: float | None
    ) -> UpdateReady:
        """Store the training process's update as a blob, then put the message about it into the outbox.

        The residual is stored before the message. A crash between the two loses the update, as a refusal would; in the
        other order, what the update made up for would be sent a second time.
        """
        path = _update_file(self._config)
        with disk_errors(path):
            size_bytes = path.stat().st_size
        entry = BlobEntry(part=Part.WEIGHTS, size_bytes=size_bytes, digest=self._cache.put_file(path, move=True))
        report = TrainingReport(
            samples=result.samples,
            steps=result.steps,
            loss_first=result.loss_first,
            loss_last=result.loss_last,
            seconds=result.seconds,
            peak_memory_bytes=result.peak_memory_bytes,
            downloaded_bytes=downloaded_bytes,
            uploaded_bytes=size_bytes,
            battery_share=battery_share,
            encoding=offer.encoding,
        )
        message = UpdateReady(
            update_id=update_id(self._config.device, offer.task, offer.round, offer.base_version, entry.digest),
            task=offer.task,
            round=offer.round,
            base_version=offer.base_version,
            update=entry,
            report=report,
        )
        if offer.encoding.leaves_residual:
            _residuals(self._config).keep(offer.task, offer.round, _residual_file(self._config))
        self._outbox.put(message.update_id, encode(message))
        self.forget_checkpoint()
        return message

    def room_for_checkpoints(self, offer: Offer) -> int:
        """The bytes of disk that training for ``offer`` needs at most besides its update.

        A checkpoint holds the weights and the optimizer's moments, and is written while the one before it still exists.
        At the end the residual lies beside the last checkpoint.
        """
        weights = _weights_bytes(offer)
        checkpoint = weights * (1 + offer.recipe.optimizer.moments)
        residual = weights if offer.encoding.leaves_residual else 0
        path = _checkpoint_file(self._config)
        there = path.stat().st_size if path.exists() else 0
        return max(0, 2 * checkpoint - weights - there, checkpoint + residual - there)

    def forget_checkpoint(self) -> None:
        """Remove the checkpoint and leftovers. If that fails it only takes room: no other job ever resumes from it."""
        _remove(_checkpoint_file(self._config))
        self.forget_leftovers()

    def forget_leftovers(self) -> None:
        """Remove what no job resumes from: an update that was not stored, and files that were being written.

        Call it while no training process runs. One that was killed leaves them, each as large as a checkpoint.
        """
        update, residual = _update_file(self._config), _residual_file(self._config)
        written = (_checkpoint_file(self._config), update, residual)
        _remove(update, residual, *map(partial_of, written))

    def pending(self) -> list[UpdateReady]:
        """The updates without a receipt, oldest first."""
        messages = (decode_from_device(payload) for _, payload in self._outbox.pending())
        return [message for message in messages if isinstance(message, UpdateReady)]

    def last_answered(self) -> tuple[str, int] | None:
        """Task and round of the newest update without a receipt."""
        pending = self.pending()
        return (pending[-1].task, pending[-1].round) if pending else None

    def settle(self, receipt: Receipt) -> None:
        """Delete the update that ``receipt`` is for."""
        for update in self.pending():
            if update.update_id == receipt.update_id:
                about = {"task": update.task, "round": update.round}
                verdict = because(receipt.verdict.value, receipt.reason)
                _log.info("round %d of %s: %s", update.round, update.task, verdict, extra=about)
                self._cache.delete(update.update.digest)
        self._outbox.resolve(receipt.update_id)


class Stock:
    """The blobs on a device: which are there, which are being fetched, and which have to stay.

    Those that have to stay ("pinned") are the ones that the current work needs and those of ``updates``. The model that
    serves is not among them: it lies in its slot.
    """

    def __init__(self, cache: BlobCache, blobs: BlobSources, updates: Updates) -> None:
        self._cache, self._blobs, self._updates = cache, blobs, updates
        self._cleared_for = ""

    def present(self, entries: Iterable[BlobEntry]) -> frozenset[str]:
        """The digests of those of ``entries`` that are complete on this device."""
        return frozenset(entry.digest for entry in entries if self._cache.has(entry.digest))

    def drop_damaged(self, entries: Iterable[BlobEntry]) -> bool:
        """Delete those of ``entries`` whose bytes have changed on the disk; whether any had. Reads all of them."""
        here = [entry.digest for entry in entries if self._cache.has(entry.digest)]
        damaged = [digest for digest in here if not is_sound(self._cache.path_of(digest))]
        for digest in damaged:
            self._cache.delete(digest)
            _log.warning("blob %s is damaged on this disk: deleted, to be fetched again", digest[:16])
        return bool(damaged)

    def pinned(self, needs: Iterable[BlobEntry]) -> set[str]:
        """The digests of the blobs that have to stay, given those that the current work ``needs``."""
        return {entry.digest for entry in (*needs, *(update.update for update in self._updates.pending()))}

    def make_room(self, offer: Offer | None, needs: Sequence[BlobEntry], coming: Sequence[BlobEntry] = ()) -> None:
        """Make room for the blobs that are ``coming``, and for what ``offer`` will produce.

        That is an update, its residual, and checkpoints. Raises ``CacheFullError`` or ``DiskFullError``.
        """
        pinned = self.pinned(needs)
        self.end_transfers_but(pinned)
        update_bytes = 0 if offer is None else _update_bytes(offer)
        beside_bytes = 0 if offer is None else self._updates.room_for_checkpoints(offer)
        self._cache.make_room(coming, pinned, reserve_bytes=update_bytes, beside_bytes=beside_bytes)

    def clear(self, pinned: AbstractSet[str], reason: object) -> None:
        """Delete every blob that is not pinned, because the disk is full. A repeated reason is logged once."""
        self.end_transfers_but(pinned)
        freed_bytes = self._cache.shrink(pinned, limit_bytes=0)
        if freed_bytes or str(reason) != self._cleared_for:
            _log.warning("freed %.1f MiB of the cache: %s", freed_bytes / 2**20, reason)
        self._cleared_for = str(reason)

    def end_transfers_but(self, digests: AbstractSet[str]) -> None:
        """Stop fetching every blob except ``digests``."""
        for digest in {*self._blobs.unfinished} - digests:
            self._blobs.cancel(digest)


def _weights_bytes(offer: Offer) -> int:
    """The size of the parameters that ``offer`` trains: four bytes each."""
    return sum(entry.size_bytes for entry in offer.manifest if entry.part is Part.WEIGHTS)


def _update_bytes(offer: Offer) -> int:
    """The size of an update, at most: that of the weights, or in top-k six bytes an entry instead of four."""
    share = offer.encoding.share if offer.encoding.kind is EncodingKind.TOPK else 0
    return int(_weights_bytes(offer) * max(1, 1.5 * share))


def _update_file(config: AgentConfig) -> Path:
    return config.state_dir / "update.safetensors"


def _checkpoint_file(config: AgentConfig) -> Path:
    return config.state_dir / "checkpoint.safetensors"


def _residual_file(config: AgentConfig) -> Path:
    """Where the training process writes what its update loses to the encoding."""
    return config.state_dir / "residual.safetensors"


def _remove(*files: Path) -> None:
    """Remove what there is of ``files``, as far as the disk lets it."""
    for file in files:
        with suppress(OSError):
            file.unlink(missing_ok=True)


def _residuals(config: AgentConfig) -> Residuals:
    return Residuals(config.state_dir / "residuals")


def _rounding_seed(device: str, offer: Offer) -> int:
    """A seed of 52 bits, different for every device, so that rounding errors even out over the fleet."""
    return int(hashlib.sha256(f"{device} {offer.task} {offer.round}".encode()).hexdigest()[:13], 16)
