"""The model that this device serves: loaded from its slot, and replaced by a release that has passed its trial here.

    install ──▶ on trial ──confirm──▶ stays          only now its slot becomes the current one
       │            │
       └─ fails ────┴──▶ the model before runs on; the slot is emptied

Until a model is confirmed, the slot of the one before is current: a process that ends meanwhile comes back with that
one. The stored report shows that a trial was interrupted. A release that comes during another's trial ends that trial:
the model before both runs on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock
from typing import TypeVar

import msgspec
import numpy as np

from edge_sdk.data import Examples
from edge_sdk.elastic.submodel import ModelTask
from edge_sdk.errors import BlobCorruptError, DataFormatError, ModelFormatError, NothingToLearnError, RaffmError
from edge_sdk.inference.engine import Engine, Given, Measurement, Prediction
from edge_sdk.inference.slots import Slot, Slots
from edge_sdk.protocol.messages import Part, ReleaseReport, Standing
from edge_sdk.protocol.releases import Order, ReleasedModel, Trial

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


@dataclass(slots=True)
class _OnTrial:
    """The trial of a model that serves already, and the model that runs again if the trial fails."""

    report: ReleaseReport
    ends_s: float
    before: Engine | None
    release_before: int
    failure: str = ""


class Serving:
    """Serves the model in the current slot, or the one on trial.

    :meth:`predict`, :meth:`tag` and :meth:`generate` may be called from any thread, all else from one thread at a time.
    ``providers`` are those of :func:`edge_sdk.sessions.open_session`. With ``is_only_asked``, nothing is
    written, and a trial of another process, the agent, is left alone.
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
        self._ending = Event()
        self._engine: Engine | None = None
        self._release = 0
        self._trial: _OnTrial | None = None
        if not is_only_asked:
            self._settle_trial()
        self._load_current(is_only_asked=is_only_asked)

    @property
    def release(self) -> int:
        """The number of the release that runs; 0 before the first."""
        return self._release

    @property
    def report(self) -> ReleaseReport | None:
        """The report on the release that was assigned last; survives restarts."""
        return self._slots.report()

    @property
    def lost(self) -> ReleaseReport | None:
        """What to report where a release that was confirmed here no longer runs, because its slot is damaged.

        The same release is then wanted again.
        """
        report = self._slots.report()
        if report is None or report.standing is not Standing.HEALTHY or report.release == self._release:
            return None
        detail = f"its files are damaged on this device, which runs {_named(self._release)} until it comes again"
        return msgspec.structs.replace(report, standing=Standing.TRYING, healthy=False, detail=detail)

    def predict(self, given: Given) -> list[Prediction]:
        """The likeliest label of each. Raises ``ModelFormatError`` before the first release, else as the engine.

        If the model on trial cannot answer, its trial has failed, and the one before answers.
        """
        return self._answered(lambda engine: _predictions(engine, given))

    def tag(self, sentences: Sequence[Sequence[str]]) -> list[list[Prediction]]:
        """The likeliest tag of each word; otherwise as :meth:`predict`."""
        return self._answered(lambda engine: engine.tag(sentences))

    def generate(self, texts: Sequence[str], max_new_tokens: int) -> list[str]:
        """A continuation of each text, or an answer to it; otherwise as :meth:`predict`."""
        return self._answered(lambda engine: engine.generate(texts, max_new_tokens))

    @property
    def task(self) -> ModelTask:
        """The running model's task. Raises ``ModelFormatError`` before the first release."""
        return self._running().task

    @property
    def input_shape(self) -> tuple[int | None, ...]:
        """The running model's :attr:`Engine.input_shape`. Raises ``ModelFormatError`` before the first release."""
        return self._running().input_shape

    def install(
        self, order: Order, model: ReleasedModel, files: Mapping[Part, Path], held_out: Examples | None
    ) -> ReleaseReport:
        """Stage, load, measure on ``held_out``, and put on trial if all went well. Reports failures, never raises.

        A release that runs already stays as it is. Without held-out examples, the model is only run once on made-up
        input, and the report has no accuracy. Details of examples that do not fit are logged, but not reported.
        """
        if self._runs(model):
            return self._stays(order, held_out)
        if self._trial is not None:
            self._restore(self._trial)
        report = order.report(Standing.TRYING)
        try:
            self._slots.keep_report(report)
            engine = self._staged(model, files)
            measured = self._measurement(engine, held_out)
            report = _measured(report, measured)
            flaw = self._flaw(measured, order.assignment.trial, held_out)
            if self._ending.is_set():
                self._forget_trial()
                return report
            if flaw:
                return self._refused(report, flaw)
            self._slots.keep_report(report)
        except DataFormatError as error:
            _log.warning("release %d cannot be evaluated on the held-out examples: %s", model.release, error)
            return self._refused(report, "the held-out examples do not fit this model")
        except (RaffmError, MemoryError) as error:
            return self._refused(report, str(error) or "there is not enough memory to try it beside what runs")
        ends_s = time.monotonic() + order.assignment.trial.seconds
        with self._lock:
            self._trial = _OnTrial(report, ends_s, self._engine, self._release)
            self._engine, self._release = engine, model.release
        return report

    def trial_is_over(self, now_s: float) -> bool:
        """Whether a model on trial has failed or served for its time; ``now_s`` is a monotonic clock's."""
        trial = self._trial
        return trial is not None and (bool(trial.failure) or now_s >= trial.ends_s)

    @property
    def on_trial(self) -> ReleaseReport | None:
        """The report on the release on trial, another object for each trial; ``None`` if there is none."""
        trial = self._trial
        return None if trial is None else trial.report

    @property
    def trial_release(self) -> int:
        """The number of the release on trial, unless it has failed; else 0."""
        trial = self._trial
        return 0 if trial is None or trial.failure else trial.report.release

    def end_trial(self) -> ReleaseReport:
        """Confirm the model on trial, or go back to the one before it. Reports failures.

        Raises ``ModelFormatError`` if no model is on trial.
        """
        trial = self._trial
        if trial is None:
            raise ModelFormatError("no model is on trial")
        if not trial.failure:
            try:
                return self._confirmed(trial)
            except RaffmError as error:
                trial.failure = trial.failure or str(error)
        self._restore(trial)
        return self._refused(trial.report, trial.failure)

    def end_soon(self) -> None:
        """Leave a model half measured, because the process ends; from any thread. It may be assigned again."""
        self._ending.set()

    def interrupt_trial(self) -> None:
        """Forget a trial because the process ends, which is not the model's fault: it may be assigned again."""
        if self._trial is not None:
            self._forget_trial()

    def leave(self, order: Order) -> ReleaseReport:
        """Run what ran before the release, or nothing if it was the first. Reports failures, never raises."""
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
        with suppress(RaffmError):  # it was measured in its trial, so this may fail
            report = _measured(report, self._measurement(self._running(), held_out))
            if not self._ending.is_set():
                self._slots.keep_report(report)
        return report

    def _staged(self, model: ReleasedModel, files: Mapping[Part, Path]) -> Engine:
        """Stage ``model`` in the free slot and load it; an engine that has run once."""
        _check_runtime(model.onnxruntime)
        engine = self._engine_of(self._slots.stage(model, files))
        engine.try_out()
        return engine

    def _flaw(self, measured: Measurement | None, trial: Trial, held_out: Examples | None) -> str:
        """Which condition of ``trial`` the model fails, in words; empty if none, or if nothing was measured."""
        if measured is None:
            return ""
        if trial.min_accuracy is not None and measured.accuracy < trial.min_accuracy:
            return f"accuracy {measured.accuracy:.3f} is below {trial.min_accuracy:.3f}"
        if trial.max_latency_ms is not None and measured.latency_ms > trial.max_latency_ms:
            return f"an example takes {measured.latency_ms:.1f} ms, more than {trial.max_latency_ms:.1f}"
        allowed = trial.max_accuracy_loss
        before = None if allowed is None else self._accuracy_before(held_out)
        if allowed is not None and before is not None and measured.accuracy < before - allowed:
            return f"accuracy {measured.accuracy:.3f} is more than {allowed:.3f} below {before:.3f}"
        return ""

    def _measurement(self, engine: Engine, held_out: Examples | None) -> Measurement | None:
        """How ``engine`` does on ``held_out``; ``None`` if no example is held out, or none that has a token."""
        try:
            return engine.measure(held_out, self._ending) if held_out else None
        except NothingToLearnError as error:
            _log.info("nothing can be measured on the held-out examples: %s", error)
            return None

    def _accuracy_before(self, held_out: Examples | None) -> float | None:
        """That of the model that runs; ``None`` without one, or where the examples do not fit it, as a new label."""
        try:
            measured = None if self._engine is None else self._measurement(self._engine, held_out)
        except RaffmError as error:
            _log.warning("the model before cannot be compared with: %s", error)
            return None
        return None if measured is None else measured.accuracy

    def _refused(self, report: ReleaseReport, detail: str) -> ReleaseReport:
        """Empty the slot and report the failure; if the disk refuses the report, it is lost with this process."""
        self._slots.discard()
        report = msgspec.structs.replace(report, standing=Standing.ROLLED_BACK, healthy=False, detail=detail[:500])
        try:
            self._slots.keep_report(report)
        except RaffmError as error:
            _log.warning("the report on release %d is not stored: %s", report.release, error)
        return report

    def _confirmed(self, trial: _OnTrial) -> ReleaseReport:
        """Switch to the slot of the model on trial, and back again if that cannot be stored or the model fails now."""
        self._slots.switch()
        try:
            report = msgspec.structs.replace(trial.report, standing=Standing.HEALTHY, healthy=True)
            self._slots.keep_report(report)
            with self._lock:
                if trial.failure:
                    raise ModelFormatError(trial.failure)
                self._trial = None
        except RaffmError:
            self._slot_before()
            raise
        return report

    def _give_up_trial(self, engine: Engine, reason: str) -> Engine | None:
        """If ``engine`` is on trial, mark the trial as failed; the engine before it, if there is one."""
        with self._lock:
            trial = self._trial
            if trial is None or engine is not self._engine:
                return None
            trial.failure = trial.failure or f"it could not answer: {reason}"
            self._engine, self._release = trial.before, trial.release_before
            return trial.before

    def _forget_trial(self) -> None:
        self._slots.discard()
        with suppress(RaffmError):
            self._slots.keep_report(None)

    def _restore(self, trial: _OnTrial) -> None:
        with self._lock:
            self._engine, self._release, self._trial = trial.before, trial.release_before, None

    def _go_back(self) -> None:
        """Go back to the slot before, or to no model if there is none; the slot that is left is emptied."""
        slot = self._slot_before()
        engine = None if slot is None else self._engine_of(slot)
        self._slots.discard()
        with self._lock:
            self._engine, self._release = engine, 0 if slot is None else slot.manifest.release

    def _slot_before(self) -> Slot | None:
        """Make the slot before current, or none if there is none that can be used."""
        try:
            return self._slots.rollback()
        except BlobCorruptError:
            self._slots.clear()
            return None

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

    def _load_current(self, *, is_only_asked: bool) -> None:
        """Load the current slot; if it is damaged, fall back to the one before, and without that to no model.

        Which slot is current is the agent's to change: the folder may be read-only to whoever only asks.
        """
        try:
            self._load(self._slots.current())
        except (BlobCorruptError, ModelFormatError) as error:
            _log.warning("the model that ran cannot be used: %s", error)
            with suppress(BlobCorruptError, ModelFormatError):
                self._load(self._slots.previous() if is_only_asked else self._slots.rollback())

    def _settle_trial(self) -> None:
        """Decide a trial that the end of the process before interrupted: its model stays only if it was confirmed.

        If both slots are of its release, as with another export of it, that cannot be told: it is assigned again.
        """
        report = self._slots.report()
        if report is None or report.standing is not Standing.TRYING:
            return
        if self._slots.current_release() != report.release:
            self._refused(report, "the agent ended while it tried this release")
        elif self._slots.may_hold_beside(report.release):
            self._forget_trial()
        else:
            healthy = msgspec.structs.replace(report, standing=Standing.HEALTHY, healthy=True)
            with suppress(RaffmError):
                self._slots.keep_report(healthy)

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


def _named(release: int) -> str:
    return f"release {release}" if release else "no model"


def _measured(report: ReleaseReport, measured: Measurement | None) -> ReleaseReport:
    if measured is None:
        return report
    return msgspec.structs.replace(
        report, samples=measured.samples, accuracy=measured.accuracy, latency_ms=measured.latency_ms
    )


def _check_runtime(needed: str) -> None:
    """Raise ``ModelFormatError`` if this onnxruntime is older than the model needs."""
    from edge_sdk.sessions import runtime_version  # noqa: PLC0415 - with the first model

    there = runtime_version()
    if needed and _numbers(there) < _numbers(needed):
        raise ModelFormatError(f"the model needs onnxruntime {needed} or newer; {there} is installed")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
