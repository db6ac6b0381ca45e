"""How an update gets in: announced, pulled, admitted, durable, and only then receipted.

The id of an update is the digest of who sent it, for what, and what it is, so that the same update has the same id
however often it is sent, and gets the same receipt again.
"""

from __future__ import annotations

import logging
import math
import time
from typing import TYPE_CHECKING

from coordinator.aggregation.admission import Rejected, admit_file
from coordinator.fleet.revocation import REASON as REVOKED
from coordinator.models.versions import ModelVersion
from coordinator.resources import Resources
from coordinator.rounds.machine import RoundState
from coordinator.store.database import Transaction
from coordinator.store.records import UpdateRecord
from edge_sdk.elastic.slicing import shapes_of
from edge_sdk.elastic.submodel import Submodel
from edge_sdk.protocol.blobs import update_id
from edge_sdk.protocol.encodings import table_of
from edge_sdk.protocol.messages import FP32, Receipt, Refusal, UpdateReady, Verdict
from edge_sdk.protocol.tensors import MAX_HEADER_BYTES, size_of

if TYPE_CHECKING:
    from coordinator.models.run import Run

_log = logging.getLogger(__name__)


class Intake:
    """The updates of one task on their way in."""

    def __init__(self, run: Run, resources: Resources) -> None:
        self._run = run
        self._resources = resources
        self._coming: dict[str, UpdateReady] = {}

    @property
    def coming(self) -> set[str]:
        """The digests of the updates that are being pulled."""
        return {update.update.digest for update in self._coming.values()}

    def announced(self, device: str, update: UpdateReady, collecting: RoundState | None) -> None:
        """Pull an update of the round that is ``collecting``, or answer at once if that needs none of its bytes."""
        if self._coming.get(device) == update:  # said again while it waits: a fleet does
            self._resources.fetch(device, update.update.digest, update.update.size_bytes)
            return
        with self._resources.store.reading() as tx:
            known = tx.updates.get(update.update_id)
            is_current = collecting is not None and update.round == collecting.number
            offer = tx.offers.get(update.task, update.round, device) if is_current else None
        if known is not None:
            self._answer(device, update, known.verdict, known.reason)
        elif offer is None or collecting is None:
            reason = Refusal.ROUND.because(f"round {update.round} is over, or was not this device's")
            self._answer(device, update, Verdict.REJECTED, reason)
        elif problem := self._implausible(device, update, offer.submodel, collecting.base_version):
            self._answer(device, update, Verdict.REJECTED, problem)
        else:
            self.forget(device)
            self._coming[device] = update
            self._resources.fetch(device, update.update.digest, update.update.size_bytes)

    def stop(self) -> None:
        """The round is decided: its updates that are still on their way are no longer wanted."""
        for device in tuple(self._coming):
            self.forget(device)

    def arrived(self, device: str, digest: str) -> UpdateReady | None:
        """The announcement that a fetched blob belongs to."""
        update = self._coming.get(device)
        return self._coming.pop(device) if update is not None and update.update.digest == digest else None

    def forget(self, device: str) -> None:
        """A device's update that is on its way is no longer wanted; it is one at most, the last that it announced."""
        update = self._coming.pop(device, None)
        if update is not None and update.update.digest not in self.coming:
            self._resources.cancel(update.update.digest)

    def judge(
        self, tx: Transaction, device: str, update: UpdateReady, base: ModelVersion, collecting: int
    ) -> tuple[Receipt, bool | None]:
        """The verdict on a fetched update, recorded in ``tx``: the receipt to send after the commit.

        Also whether the round has its answer from this device: admitted, refused, or ``None`` where nothing changes.
        """
        offer, known = tx.offers.get(update.task, update.round, device), tx.devices.get(device)
        if offer is None or update.round != collecting:
            over = Refusal.ROUND.because(f"round {update.round} is over")
            return Receipt(update_id=update.update_id, verdict=Verdict.REJECTED, reason=over), None
        if known is None or known.revoked_s is not None:
            return Receipt(update_id=update.update_id, verdict=Verdict.REJECTED, reason=REVOKED), None
        path = self._resources.blobs.path_of(update.update.digest)
        slices = self._run.trained_slices(offer.submodel)
        try:
            weight, verdict, reason = (
                admit_file(path, base.parameters, slices, update.report, self._run.config.admission),
                Verdict.ACCEPTED,
                "",
            )
        except Rejected as rejected:
            weight, verdict, reason = 0.0, Verdict.REJECTED, str(rejected)
        record = UpdateRecord(
            update.update_id,
            update.task,
            update.round,
            device,
            update.update.digest,
            update.update.size_bytes,
            weight,
            update.report,
            verdict,
            reason,
            time.time(),
        )
        counted = tx.updates.add(record)
        self._note(tx, counted)
        admitted = None if counted is not record else verdict is Verdict.ACCEPTED
        return Receipt(update_id=update.update_id, verdict=counted.verdict, reason=counted.reason[:500]), admitted

    def _note(self, tx: Transaction, counted: UpdateRecord) -> None:
        """Record in the offer what came of it."""
        key = (counted.task, counted.round, counted.device)
        if counted.verdict is Verdict.ACCEPTED:
            tx.offers.updated(*key, counted.received_s, counted.report.peak_memory_bytes)
        elif counted.verdict is Verdict.REJECTED:
            about = {"task": counted.task, "round": counted.round, "device": counted.device}
            _log.warning("update of %s is rejected: %s", counted.device, counted.reason, extra=about)
            tx.offers.failed(*key, counted.received_s, detail=counted.reason)

    def _implausible(self, device: str, update: UpdateReady, submodel: Submodel, base_version: str) -> str:
        """What is wrong with an announcement, if anything; asked before a byte of the update is pulled."""
        if update.base_version != base_version:
            return Refusal.BASE.because(
                f"it is of version {update.base_version[:16]}, the round of {base_version[:16]}"
            )
        named = update_id(device, update.task, update.round, update.base_version, update.update.digest)
        if named != update.update_id:
            return Refusal.IDENTITY.because("its id is not the digest of what it names")
        losses = update.report.loss_first, update.report.loss_last
        if not all(map(math.isfinite, losses)):  # the store could not read them again
            return Refusal.REPORT.because("its loss went from {} to {}".format(*losses))
        found, asked = update.report.encoding, self._run.config.offered_encoding
        if found not in {asked, FP32}:
            return Refusal.ENCODING.because(f"it is written in {found.kind.value}, asked for was {asked.kind.value}")
        shapes = shapes_of(self._run.trained_slices(submodel))
        most = size_of(table_of(shapes, found)) + MAX_HEADER_BYTES
        if update.update.size_bytes > most:
            return Refusal.SIZE.because(f"it has {update.update.size_bytes} bytes, its submodel at most {most}")
        return ""

    def _answer(self, device: str, update: UpdateReady, verdict: Verdict, reason: str) -> None:
        self._resources.send(device, Receipt(update_id=update.update_id, verdict=verdict, reason=reason[:500]))
