"""The model that this device runs: loaded from its slot, replaced by a release once that one has answered here."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock

import numpy as np

from edge_sdk.data import Examples
from edge_sdk.errors import BlobCorruptError, DataFormatError, ModelFormatError, RaffmError
from edge_sdk.inference.engine import Engine, Given, Prediction
from edge_sdk.inference.slots import Slot, Slots
from edge_sdk.protocol.messages import Part, ReleaseReport
from edge_sdk.protocol.signing import ReleaseManifest

_log = logging.getLogger(__name__)


class Serving:
    """Predictions from the current slot; :meth:`install` and :meth:`predict` may be called from different threads.

    ``providers`` are those of :func:`edge_sdk.sessions.open_session`.
    """

    def __init__(self, folder: Path, *, threads: int, providers: Sequence[str] | None = None) -> None:
        self._slots = Slots(folder)
        self._threads, self._providers = threads, providers
        self._lock = Lock()
        self._engine: Engine | None = None
        self._release = 0
        self._load_current()

    @property
    def release(self) -> int:
        """The number of the release that runs; 0 before the first."""
        return self._release

    def predict(self, given: Given) -> list[Prediction]:
        """The likeliest label of each. ``ModelFormatError`` before the first release has arrived."""
        engine = self._running()
        return engine.predict_arrays(given) if isinstance(given, np.ndarray) else engine.predict(given)

    @property
    def input_shape(self) -> tuple[int | None, ...]:
        """As the engine's. ``ModelFormatError`` before the first release has arrived."""
        return self._running().input_shape

    def install(
        self, manifest: ReleaseManifest, files: Mapping[Part, Path], held_out: Examples | None
    ) -> ReleaseReport:
        """Stage, load and measure on ``held_out``; switch only if all went well. Never raises: it reports.

        What is wrong with the examples is logged, and not reported.
        A device without held-out examples tries the model on next to nothing instead, and reports no accuracy.
        """
        try:
            slot = self._slots.stage(manifest, files)
            engine = self._engine_of(slot)
            engine.try_out()
            measured = engine.measure(held_out) if held_out else None
            self._slots.switch()
        except DataFormatError as error:
            _log.warning("release %d cannot be measured on what is held out: %s", manifest.release, error)
            return _unhealthy(manifest, "the held-out examples do not fit this model")
        except RaffmError as error:
            return _unhealthy(manifest, str(error)[:500])
        with self._lock:
            self._engine, self._release = engine, manifest.release
        return ReleaseReport(
            release=manifest.release,
            task=manifest.task,
            healthy=True,
            samples=measured.samples if measured else 0,
            accuracy=measured.accuracy if measured else None,
            latency_ms=measured.latency_ms if measured else None,
        )

    def _running(self) -> Engine:
        with self._lock:
            engine = self._engine
        if engine is None:
            raise ModelFormatError("no model yet: this device has not received a release; ask again later")
        return engine

    def _load_current(self) -> None:
        """After a restart; a damaged current slot falls back to the one before, and with neither to none."""
        with suppress(BlobCorruptError, ModelFormatError):
            try:
                self._load(self._slots.current())
            except (BlobCorruptError, ModelFormatError):
                self._load(self._slots.rollback())

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


def _unhealthy(manifest: ReleaseManifest, detail: str) -> ReleaseReport:
    return ReleaseReport(release=manifest.release, task=manifest.task, healthy=False, detail=detail)
