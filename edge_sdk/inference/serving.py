"""The model that this device runs: loaded from its slot, replaced by a release once that one has shown itself here.

    install ──▶ on trial ──confirm──▶ stays          its slot becomes the current one only now
       │            │
       └─ fails ────┴──▶ the model before runs on; the slot is emptied

Until a model is confirmed, the slot of the one before is the current one: whatever ends the process on the way, it
comes back with that. What was tried then is in the report that is kept, which says so.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TypeVar

import msgspec
import numpy as np

from edge_sdk.data import Examples
from edge_sdk.elastic.submodel import ModelTask
from edge_sdk.errors import BlobCorruptError, DataFormatError, ModelFormatError, RaffmError
from edge_sdk.inference.engine import Engine, Given, Measurement, Prediction
from edge_sdk.inference.slots import Slot, Slots
from edge_sdk.protocol.messages import Part, ReleaseReport, Standing
from edge_sdk.protocol.releases import Order, ReleasedModel, Trial

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


@dataclass(slots=True)
class _OnTrial:
    """A model that serves until it is confirmed, and what runs again where it is not."""

    report: ReleaseReport
    ends_s: float
    before: Engine | None
    release_before: int
    failure: str = ""


class Serving:
    """Predictions from the current slot, or the model on trial; :meth:`predict` may be called from any thread.

    All else is called from one thread at a time. ``providers`` are those of :func:`edge_sdk.sessions.open_session`.
    What ``is_only_asked`` leaves alone what another process, the agent, has on trial.
    """

    def __init__(
        self,
        folder: Path,
        *,
        threads: int,
        providers: Sequence[str] | None = None,
        is_only_asked: bool = False,
    ) -> None:
        self._folder, self._slots = folder, Slots(folder)
        self._threads, self._providers = threads, providers
        self._lock = Lock()
        self._engine: Engine | None = None
        self._release = 0
        self._trial: _OnTrial | None = None
        if not is_only_asked:
            self._settle_trial()
        self._load_current()

    @property
    def release(self) -> int:
        """The number of the release that runs; 0 before the first."""
        return self._release

    @property
    def report(self) -> ReleaseReport | None:
        """How the last release did that was assigned, through any number of restarts."""
        return self._slots.report()

    def predict(self, given: Given) -> list[Prediction]:
        """The likeliest label of each. ``ModelFormatError`` before the first release has arrived.

        A model on trial that cannot answer has failed; the one before does it in its place.
        """
        return self._answered(lambda engine: _predictions(engine, given))

    def tag(self, sentences: Sequence[Sequence[str]]) -> list[list[Prediction]]:
        """The likeliest tag of each word; otherwise as :meth:`predict`."""
        return self._answered(lambda engine: engine.tag(sentences))

    def generate(self, texts: Sequence[str], most_tokens: int) -> list[str]:
        """What the model writes after or for each text; otherwise as :meth:`predict`."""
        return self._answered(lambda engine: engine.generate(texts, most_tokens))

    @property
    def task(self) -> ModelTask:
        """As the engine's. ``ModelFormatError`` before the first release has arrived."""
        return self._running().task

    @property
    def input_shape(self) -> tuple[int | None, ...]:
        """As the engine's. ``ModelFormatError`` before the first release has arrived."""
        return self._running().input_shape

    def install(
        self, order: Order, model: ReleasedModel, files: Mapping[Part, Path], held_out: Examples | None
    ) -> ReleaseReport:
        """Stage, load, measure on ``held_out``, and put on trial if all went well. Never raises: it reports.

        What is wrong with the examples is logged, and not reported. A release that runs already stays as it is.
        A device without held-out examples tries the model on next to nothing instead, and reports no accuracy.
        """
        if self._runs(model):
            return self._stays(order, held_out)
        report = order.report(Standing.TRYING)
        try:
            self._slots.keep_report(report)
            engine = self._staged(model, files)
            measured = engine.measure(held_out) if held_out else None
            report = _measured(report, measured)
            if flaw := self._flaw(measured, order.assignment.trial, held_out):
                return self._refused(report, flaw)
            self._slots.keep_report(report)
        except DataFormatError as error:
            _log.warning("release %d cannot be measured on what is held out: %s", model.release, error)
            return self._refused(report, "the held-out examples do not fit this model")
        except RaffmError as error:
            return self._refused(report, str(error))
        ends_s = time.monotonic() + order.assignment.trial.seconds
        with self._lock:
            self._trial = _OnTrial(report, ends_s, self._engine, self._release)
            self._engine, self._release = engine, model.release
        return report

    def trial_is_over(self, now_s: float) -> bool:
        """Whether there is a model on trial whose time has come, on the monotonic clock, or that has failed."""
        trial = self._trial
        return trial is not None and (bool(trial.failure) or now_s >= trial.ends_s)

    @property
    def trial_release(self) -> int:
        """The release on trial that has not failed; 0 where there is none."""
        trial = self._trial
        return 0 if trial is None or trial.failure else trial.report.release

    def end_trial(self) -> ReleaseReport:
        """The model on trial stays, or the one before comes back; called while there is one. Never raises."""
        trial = self._trial
        if trial is None:
            raise ModelFormatError("no model is on trial")
        if not trial.failure:
            try:
                return self._confirmed(trial)
            except RaffmError as error:
                trial.failure = str(error)
        self._restore(trial)
        return self._refused(trial.report, trial.failure)

    def interrupt_trial(self) -> None:
        """The process ends, which is no fault of the model's: it is tried again when it is assigned again."""
        if self._trial is not None:
            self._slots.discard()
            with suppress(RaffmError):
                self._slots.keep_report(None)

    def leave(self, order: Order) -> ReleaseReport:
        """Run what ran before a release, on trial or confirmed; nothing where it was the first. Never raises."""
        release, report = order.assignment.release, order.report(Standing.ROLLED_BACK)
        try:
            if self._trial is not None and self._trial.report.release == release:
                self._restore(self._trial)
                self._slots.discard()
            elif self._release == release:
                self._go_back()
            self._slots.keep_report(report)
        except RaffmError as error:
            return order.report(Standing.HEALTHY, f"this release cannot be left: {error}")
        return report

    # -- the trial

    def _runs(self, model: ReleasedModel) -> bool:
        if self._trial is not None or self._release != model.release:
            return False
        with suppress(BlobCorruptError):
            current = self._slots.current()
            return current is not None and current.manifest == model
        return False

    def _stays(self, order: Order, held_out: Examples | None) -> ReleaseReport:
        report = order.report(Standing.HEALTHY)
        with suppress(RaffmError):  # it was measured before it came to stay
            report = _measured(report, self._running().measure(held_out) if held_out else None)
            self._slots.keep_report(report)
        return report

    def _staged(self, model: ReleasedModel, files: Mapping[Part, Path]) -> Engine:
        """The engine of ``model``, which has answered."""
        _check_runtime(model.onnxruntime)
        engine = self._engine_of(self._slots.stage(model, files))
        engine.try_out()
        return engine

    def _flaw(self, measured: Measurement | None, trial: Trial, held_out: Examples | None) -> str:
        """What ``trial`` asks for and the model has not; empty where it has all, or nothing could be measured."""
        if measured is None:
            return ""
        if trial.least_accuracy is not None and measured.accuracy < trial.least_accuracy:
            return f"accuracy {measured.accuracy:.3f} is below {trial.least_accuracy:.3f}"
        if trial.most_latency_ms is not None and measured.latency_ms > trial.most_latency_ms:
            return f"an example takes {measured.latency_ms:.1f} ms, more than {trial.most_latency_ms:.1f}"
        if trial.most_accuracy_lost is not None and self._engine is not None and held_out:
            before = self._engine.measure(held_out).accuracy
            if measured.accuracy < before - trial.most_accuracy_lost:
                return (
                    f"accuracy {measured.accuracy:.3f} is more than {trial.most_accuracy_lost:.3f} below {before:.3f}"
                )
        return ""

    def _refused(self, report: ReleaseReport, detail: str) -> ReleaseReport:
        """The model before runs on; a report that the disk refuses is lost with this process alone."""
        self._slots.discard()
        report = msgspec.structs.replace(report, standing=Standing.ROLLED_BACK, healthy=False, detail=detail[:500])
        try:
            self._slots.keep_report(report)
        except RaffmError as error:
            _log.warning("the report of release %d is not kept: %s", report.release, error)
        return report

    def _confirmed(self, trial: _OnTrial) -> ReleaseReport:
        self._slots.switch()
        report = msgspec.structs.replace(trial.report, standing=Standing.HEALTHY, healthy=True)
        self._slots.keep_report(report)
        with self._lock:
            self._trial = None
        return report

    def _give_up_trial(self, engine: Engine, reason: str) -> Engine | None:
        """The engine before, where ``engine`` is the one on trial."""
        with self._lock:
            trial = self._trial
            if trial is None or engine is not self._engine:
                return None
            trial.failure = trial.failure or f"it could not answer: {reason}"
            self._engine, self._release = trial.before, trial.release_before
            return trial.before

    def _restore(self, trial: _OnTrial) -> None:
        with self._lock:
            self._engine, self._release, self._trial = trial.before, trial.release_before, None

    def _go_back(self) -> None:
        """To the slot before, else to none. The slot that is left is emptied."""
        try:
            slot = self._slots.rollback()
        except BlobCorruptError:
            self._slots.clear()
            with self._lock:
                self._engine, self._release = None, 0
            return
        engine = self._engine_of(slot)
        self._slots.discard()
        with self._lock:
            self._engine, self._release = engine, slot.manifest.release

    # -- the model that runs

    def _answered(self, ask: Callable[[Engine], _T]) -> _T:
        engine = self._running()
        try:
            return ask(engine)
        except ModelFormatError as error:
            before = self._give_up_trial(engine, str(error))
            if before is None:
                raise
            return ask(before)

    def _running(self) -> Engine:
        with self._lock:
            engine = self._engine
        if engine is None:
            raise ModelFormatError(
                f"no model yet: no agent with its state in {self._folder.parent} has had a release; ask again later"
            )
        return engine

    def _load_current(self) -> None:
        """After a restart; a damaged current slot falls back to the one before, and with neither to none."""
        with suppress(BlobCorruptError, ModelFormatError):
            try:
                self._load(self._slots.current())
            except (BlobCorruptError, ModelFormatError):
                self._load(self._slots.rollback())

    def _settle_trial(self) -> None:
        """The process before may have ended during one: then its model does not stay, unless it was confirmed."""
        report = self._slots.report()
        if report is None or report.standing is not Standing.TRYING:
            return
        if self._slots.current_release() == report.release:
            healthy = msgspec.structs.replace(report, standing=Standing.HEALTHY, healthy=True)
            with suppress(RaffmError):
                self._slots.keep_report(healthy)
        else:
            self._refused(report, "the agent ended while it tried this release")

    def _load(self, slot: Slot | None) -> None:
        if slot is not None:
            self._engine, self._release = self._engine_of(slot), slot.manifest.release

    def _engine_of(self, slot: Slot) -> Engine:
        manifest = slot.manifest
        has_tokenizer = any(entry.part is Part.TOKENIZER for entry in manifest.manifest)
        tokenizer = slot.path(Part.TOKENIZER).read_bytes() if has_tokenizer else b""
        return Engine(
            slot.path(Part.INFERENCE_MODEL),
            tokenizer,
            manifest.labels,
            manifest.max_tokens,
            self._threads,
            providers=self._providers,
            pixel_mean=manifest.pixel_mean,
            pixel_std=manifest.pixel_std,
        )


def _predictions(engine: Engine, given: Given) -> list[Prediction]:
    return engine.predict_arrays(given) if isinstance(given, np.ndarray) else engine.predict(given)


def _measured(report: ReleaseReport, measured: Measurement | None) -> ReleaseReport:
    if measured is None:
        return report
    return msgspec.structs.replace(
        report, samples=measured.samples, accuracy=measured.accuracy, latency_ms=measured.latency_ms
    )


def _check_runtime(needed: str) -> None:
    """``ModelFormatError`` where this onnxruntime is older than the model needs."""
    from edge_sdk.sessions import runtime_version  # noqa: PLC0415 - with the first model

    there = runtime_version()
    if needed and _numbers(there) < _numbers(needed):
        raise ModelFormatError(f"the model needs onnxruntime {needed} or newer, here is {there}")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
