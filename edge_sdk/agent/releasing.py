"""Releases on a device: signatures are verified, the model is put on trial, and the outcome is reported.

Loading and measuring a model takes seconds, during which the link must stay alive: so it happens on a thread of its
own, and its outcome arrives as :class:`Tried`. When a trial has succeeded, the release is recorded as the newest
*before* its slot becomes the current one, and the report is stored before it is sent.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

from edge_sdk.agent.tasks import OwnTasks
from edge_sdk.background import Background
from edge_sdk.config import AgentConfig
from edge_sdk.errors import ReleaseRefusedError, UntrustedError
from edge_sdk.inference.serving import Serving
from edge_sdk.protocol.messages import Release, ReleaseReport, Standing
from edge_sdk.protocol.releases import Order
from edge_sdk.security.trust import Trust
from edge_sdk.storage.cache import BlobCache

_log = logging.getLogger(__name__)
TRUST_FILE = "trust"


@dataclass(frozen=True, slots=True)
class Tried:
    """The outcome of installing, confirming or leaving a release; delivered to the agent's loop like a message."""

    report: ReleaseReport


Inject = Callable[[object], None]
_R = TypeVar("_R", bound=ReleaseReport | None)


class Releases:
    """The releases of one device. Raises what :class:`edge_sdk.security.trust.Trust` raises."""

    def __init__(self, config: AgentConfig, tasks: OwnTasks) -> None:
        self._tasks = tasks
        self._trust = Trust(
            config.state_dir / TRUST_FILE,
            config.root,
            fleet=config.fleet,
            device=config.device,
            slot_of=lambda task: tasks.own_name(task) or "",
        )
        self._installer = Background("install")
        self._ending: set[Serving] = set()

    def check(self, message: Release) -> Order | ReleaseReport | None:
        """The order that ``message`` carries, or the report that answers it already; ``None`` if it is not trusted.

        The report is an earlier one that may have been lost, or says why the release is refused. Raises
        ``StorageError``.
        """
        try:
            order = self._trust.check(message)
        except ReleaseRefusedError as error:
            _log.warning("%s", error)
            return refusal(error)
        except UntrustedError as error:
            _log.warning("%s", error)
            return None
        own = self._tasks.of(order.assignment.task)
        if own is None:
            return order.report(Standing.ROLLED_BACK, f"this device takes no part in {order.assignment.task}")
        return answered(order, None if own.serving.lost else own.serving.report) or order

    def lost(self) -> tuple[ReleaseReport, ...]:
        """The :attr:`Serving.lost` of every task."""
        return tuple(report for serving in self._tasks.serving() if (report := serving.lost) is not None)

    def install(self, order: Order, cache: BlobCache, inject: Inject) -> None:
        """Begin to install the order's model, whose blobs are in ``cache``; ``inject`` takes the outcome."""
        model = order.model
        if model is None:
            return
        files = {entry.part: cache.path_of(entry.digest) for entry in model.manifest}
        own = self._tasks.chosen(order.assignment.task)
        held_out = own.examples.held_out
        future = self._installer.submit(lambda: own.serving.install(order, model, files, held_out))
        _tell(future, inject, is_told_of_trial=order.assignment.trial.seconds > 0)

    def leave(self, order: Order, inject: Inject) -> None:
        """Begin to go back to what ran before the release; ``inject`` takes the outcome."""
        serving = self._tasks.chosen(order.assignment.task).serving
        _tell(self._installer.submit(lambda: serving.leave(order)), inject)

    def end_trials(self, now_s: float, inject: Inject) -> None:
        """Decide on every model whose trial is over; ``now_s`` is a monotonic clock's. Raises ``StorageError``."""
        for serving in self._tasks.serving():
            if serving not in self._ending and serving.trial_is_over(now_s):
                self._end(serving, inject)

    def close(self) -> None:
        """Wait for the step that is under way, which ends soon, and drop those that have not begun."""
        for serving in self._tasks.serving():
            serving.end_soon()
        self._installer.close()

    def _end(self, serving: Serving, inject: Inject) -> None:
        """Begin to end the trial that is under way, unless another release that waits to be installed ends it first."""
        report = serving.on_trial
        if report is not None and serving.trial_release:
            self._trust.ran(report.task, report.release)
        self._ending.add(serving)
        future = self._installer.submit(lambda: serving.end_trial() if serving.on_trial is report else None)
        future.add_done_callback(lambda _: self._ending.discard(serving))
        _tell(future, inject)


def _tell(future: Future[_R], inject: Inject, *, is_told_of_trial: bool = True) -> None:
    """Inject the outcome once it is there. A trial of no length is not reported: its verdict follows at once."""

    def tell(done: Future[_R]) -> None:
        report = None if done.cancelled() else done.result()
        if report is not None and (is_told_of_trial or report.standing is not Standing.TRYING):
            inject(Tried(report))

    future.add_done_callback(tell)


def refusal(error: ReleaseRefusedError) -> ReleaseReport:
    """The report on a release that cannot be trusted."""
    return ReleaseReport(
        release=error.release,
        task=error.task,
        healthy=False,
        detail=str(error)[:500],
        assignment=error.assignment,
        standing=Standing.ROLLED_BACK,
    )


def answered(order: Order, report: ReleaseReport | None) -> ReleaseReport | None:
    """``report``, if it answers ``order`` already; an order to leave a release is answered by a roll-back only."""
    if report is None or report.assignment != order.assignment.number:
        return None
    is_left = report.standing is Standing.ROLLED_BACK
    return report if order.model is not None or is_left else None
