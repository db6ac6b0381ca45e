"""Simulated devices whose releases are real: trust, slots, trials and onnxruntime, on a folder each.

What is played is the agent around them: a device says hello, asks, fetches over the real exchange, and answers.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from edge_sdk.agent.releasing import answered, refusal
from edge_sdk.data import TextExamples
from edge_sdk.errors import ReleaseRefusedError, UntrustedError
from edge_sdk.inference.serving import Serving
from edge_sdk.protocol.messages import Release, ReleaseReport, Standing
from edge_sdk.protocol.releases import Order
from edge_sdk.security.trust import Trust
from edge_sdk.transport.exchange import Fetched
from tests.support.signed import FLEET
from tests.support.simulator import Device


class ProcessDiedError(BaseException):
    """The device's process ends here, and is started again."""


class ReleaseDevice(Device):
    """``folder``, ``root`` and ``held_out`` are set on the class by a test; so is what goes wrong, by release.

    ``tried`` are the releases that it ever staged.
    """

    folder: Path
    root: Path
    held_out: TextExamples
    crashes_on = frozenset[int]()
    silent_on = frozenset[int]()

    def __post_init__(self) -> None:
        super().__post_init__()
        self.tried: list[int] = []
        self.refusals: list[str] = []
        self._order: Order | None = None
        self._start()

    def _start(self) -> None:
        own = self.folder / self.name
        self.trust = Trust(own / "trust", self.root, fleet=FLEET, device=self.name)
        self.serving = Serving(own / "slots", threads=1)

    def turn(self, now_s: float) -> bool:
        try:
            if self.serving.trial_is_over(now_s):
                self._end_trial()
            return super().turn(now_s)
        except ProcessDiedError:
            self._start()
            self._introduce(now_s)
            return True

    def released(self, release: Release) -> None:
        try:
            order = self.trust.check(release)
        except UntrustedError as error:
            self.refusals.append(str(error))
            if isinstance(error, ReleaseRefusedError):
                self.say(refusal(error))
            return
        known = self.serving.report
        if (answer := answered(order, known)) is not None:
            self._tell(answer)
        elif order.model is None:
            self._order = None
            self.say(self.serving.leave(order))
        elif self._order != order:
            self._begin(order)

    def _begin(self, order: Order) -> None:
        assert order.model is not None
        self._order = order
        for entry in order.model.manifest:
            self._settle(self._exchange.fetch("coordinator", entry.digest, entry.size_bytes, time.monotonic()))

    def _settle(self, outcomes: Iterable[object]) -> None:
        outcomes = tuple(outcomes)
        super()._settle(outcomes)
        order = self._order
        if order is None or order.model is None or not any(isinstance(it, Fetched) for it in outcomes):
            return
        if all(self.blobs.has(entry.digest) for entry in order.model.manifest):
            self._order = None
            self._install(order)

    def _install(self, order: Order) -> None:
        assert order.model is not None
        files = {entry.part: self.folder / self.name / entry.digest for entry in order.model.manifest}
        for entry in order.model.manifest:
            if not files[entry.part].exists():  # a slot links to it
                files[entry.part].write_bytes(self.blobs.whole[entry.digest])
        self.tried.append(order.model.release)
        if order.model.release in self.crashes_on:
            with suppress(ProcessDiedError):
                self.serving._staged = self._die  # type: ignore[method-assign]
                self.serving.install(order, order.model, files, self.held_out)
            raise ProcessDiedError
        self._tell(self.serving.install(order, order.model, files, self.held_out))

    def _die(self, *_: object) -> None:
        raise ProcessDiedError

    def _end_trial(self) -> None:
        report = self.serving.report
        assert report is not None
        if self.serving.trial_release:
            self.trust.ran(report.task, self.serving.trial_release)
        self._tell(self.serving.end_trial())

    def _tell(self, report: ReleaseReport) -> None:
        if report.release not in self.silent_on or report.standing is Standing.ROLLED_BACK:
            self.say(report)
