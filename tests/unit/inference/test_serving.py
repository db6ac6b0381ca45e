"""A model on trial: it serves, and stays once it was confirmed; whatever ends before, the one before comes back."""

from __future__ import annotations

import re
import time
from contextlib import suppress
from pathlib import Path
from threading import Event
from typing import Any

import msgspec
import numpy as np
import pytest

from edge_sdk.data import TextExamples
from edge_sdk.elastic.submodel import Submodel
from edge_sdk.errors import DiskFullError, ModelFormatError
from edge_sdk.inference import slots
from edge_sdk.inference.engine import Engine, Measurement
from edge_sdk.inference.serving import Serving
from edge_sdk.protocol.blobs import digest_of
from edge_sdk.protocol.messages import BlobEntry, Part, Standing
from edge_sdk.protocol.releases import Order, ReleasedModel, Trial
from tests.support.logistic_graph import LABELS, examples, inference_model, parameters, tokenizer_json
from tests.support.signed import installed, order_of

HELD_OUT = examples(20, seed=5)
LONG = Trial(seconds=3600.0)


class Case:
    """A device that runs release 1."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.serving = self.restarted()
        assert installed(self.serving, *self.release(1), HELD_OUT).standing is Standing.HEALTHY

    def restarted(self) -> Serving:
        return Serving(self.folder / "slots", threads=1)

    def release(self, number: int, trial: Trial = LONG, **changes: Any) -> tuple[Order, dict[Part, Path]]:
        data = {
            Part.INFERENCE_MODEL: inference_model(parameters(number)).SerializeToString(),
            Part.TOKENIZER: tokenizer_json(),
        }
        files = {part: self.folder / digest_of(content) for part, content in data.items()}
        for part, content in data.items():
            if not files[part].exists():
                files[part].write_bytes(content)
        entries = tuple(BlobEntry(part=part, digest=files[part].name, size_bytes=len(data[part])) for part in data)
        model = ReleasedModel(
            release=number,
            task="task",
            submodel=Submodel((0,), (1,), (4,)),
            labels=LABELS,
            max_tokens=16,
            manifest=entries,
            **changes,
        )
        return order_of(model, trial), files

    def begin(self, number: int, trial: Trial = LONG, **changes: Any) -> Order:
        order, files = self.release(number, trial, **changes)
        assert order.model is not None
        self.report = self.serving.install(order, order.model, files, HELD_OUT)
        return order


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def test_model_on_trial_serves_and_is_not_the_current_slot_until_confirmed(case: Case) -> None:
    case.begin(2)
    assert (case.report.standing, case.report.healthy, case.serving.release) == (Standing.TRYING, False, 2)
    assert not case.serving.trial_is_over(time.monotonic())
    assert case.serving.trial_is_over(time.monotonic() + 3601)
    assert Serving(case.folder / "slots", threads=1, is_only_asked=True).release == 1
    report = case.serving.end_trial()
    assert (report.standing, report.healthy, case.serving.release) == (Standing.HEALTHY, True, 2)
    assert case.restarted().release == 2


def test_process_that_ends_during_a_trial_comes_back_with_the_model_before_and_says_so(case: Case) -> None:
    case.begin(2)
    serving = case.restarted()
    assert (serving.release, serving.report.standing) == (1, Standing.ROLLED_BACK)
    assert serving.report.detail == "the agent ended while it tried this release"
    assert not any((case.folder / "slots" / "b").glob("*")), "what was tried is gone"
    assert case.restarted().report == serving.report


def test_polite_end_during_a_trial_is_no_fault_of_the_model(case: Case) -> None:
    case.begin(2)
    case.serving.interrupt_trial()
    serving = case.restarted()
    assert (serving.release, serving.report) == (1, None)


@pytest.mark.parametrize("trial", [LONG, Trial(min_accuracy=1.0), Trial(max_accuracy_loss=0.0)])
def test_process_that_ends_while_it_measures_does_so_soon_and_blames_no_model(case: Case, trial: Trial) -> None:
    measured = Engine.measure
    with pytest.MonkeyPatch.context() as patch:

        def measure(engine: Engine, held_out: TextExamples, ending: Event | None = None) -> Measurement:
            case.serving.end_soon()
            found.append(measured(engine, held_out, ending))
            return found[-1]

        found = list[Measurement]()
        patch.setattr(Engine, "measure", measure)
        case.begin(2, trial)
    assert [each.samples for each in found[:1]] == [1], "of twenty"
    case.serving.interrupt_trial()
    assert case.serving.release == 1
    serving = case.restarted()
    assert (serving.release, serving.report) == (1, None)


def test_process_that_ends_while_it_measures_again_what_runs_leaves_no_report_of_it(case: Case) -> None:
    before = case.serving.report
    case.serving.end_soon()
    case.begin(1)
    assert case.restarted().report == before


def test_model_that_is_damaged_gives_way_to_the_one_before_and_the_log_says_so(
    case: Case, caplog: pytest.LogCaptureFixture
) -> None:
    case.begin(2)
    case.serving.end_trial()
    for folder, release in (("b", 1), ("a", 0)):
        (case.folder / "slots" / folder / "inference-model").write_bytes(b"")
        caplog.clear()
        assert case.restarted().release == release
        assert "has damaged files: inference-model; a new release replaces it" in caplog.text


def test_process_that_ends_right_after_the_switch_has_confirmed(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    case.begin(2)
    monkeypatch.setattr(case.serving._slots, "keep_report", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        case.serving.end_trial()
    serving = case.restarted()
    assert (serving.release, serving.report.standing) == (2, Standing.HEALTHY)


@pytest.mark.parametrize("is_staged", [True, False])
def test_process_that_ends_while_it_tries_another_export_of_what_runs_confirms_nothing(
    case: Case, monkeypatch: pytest.MonkeyPatch, *, is_staged: bool
) -> None:
    """Its number is that of the current slot: a roll-back would have made current what was never tried."""
    if is_staged:
        case.begin(1, onnxruntime="1.0")
    else:
        with monkeypatch.context() as patch:
            patch.setattr(slots, "_place", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                case.begin(1, onnxruntime="1.0")
    case.serving = case.restarted()
    assert (case.serving.release, case.serving.report) == (1, None)
    assert not (case.folder / "slots" / "b").exists()
    case.begin(1, onnxruntime="1.0")
    assert case.report.standing is Standing.TRYING


@pytest.mark.parametrize(
    ("trial", "why"),
    [
        (Trial(min_accuracy=1.0), r"accuracy 0\.\d+ is below 1\.000"),
        (Trial(max_latency_ms=0.001), "an example takes"),
    ],
)
def test_model_that_shows_too_little_never_serves(case: Case, trial: Trial, why: str) -> None:
    case.begin(2, trial)
    assert (case.report.standing, case.serving.release) == (Standing.ROLLED_BACK, 1)
    assert re.search(why, case.report.detail)
    assert case.report.accuracy is not None, "what was measured is said"
    assert case.restarted().release == 1


def test_model_that_is_worse_than_the_one_before_goes_back(case: Case) -> None:
    accuracies = {number: measured(case, number) for number in range(2, 12)}
    before = measured(case, 1)
    worse = next(number for number, found in accuracies.items() if found < before)
    case.begin(worse, Trial(max_accuracy_loss=0.0))
    assert "below" in case.report.detail
    assert case.serving.release == 1
    case.begin(worse, Trial(max_accuracy_loss=1.0))
    assert case.report.standing is Standing.TRYING


def measured(case: Case, number: int) -> float:
    order, files = case.release(number)
    other = Serving(case.folder / f"other-{number}", threads=1)
    return installed(other, order, files, HELD_OUT).accuracy or 0.0


def test_model_on_trial_that_cannot_answer_gives_way_at_once(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    case.begin(2)

    def fail(_: object) -> None:
        raise ModelFormatError("it broke")

    monkeypatch.setattr(case.serving._engine, "predict", fail)
    assert case.serving.predict(["good film"])[0].label in LABELS
    assert case.serving.release == 1
    assert case.serving.trial_is_over(time.monotonic())
    assert case.serving.trial_release == 0, "it is not noted as having run"
    report = case.serving.end_trial()
    assert (report.standing, report.detail) == (Standing.ROLLED_BACK, "it could not answer: it broke")
    assert case.restarted().release == 1


def _break(_: object) -> None:
    raise ModelFormatError("it broke")


@pytest.mark.parametrize("before", [0, 1])
def test_model_that_fails_an_application_while_it_is_confirmed_goes_back(
    case: Case, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    """The slot's digests take seconds, and the application's thread asks meanwhile."""
    if not before:
        case.serving.leave(case.release(1)[0])
    case.begin(2)
    switch = case.serving._slots.switch

    def asked_meanwhile() -> slots.Slot:
        monkeypatch.undo()
        slot = switch()
        monkeypatch.setattr(case.serving._engine, "predict", _break)
        with suppress(ModelFormatError):
            case.serving.predict(["good film"])
        monkeypatch.undo()
        return slot

    monkeypatch.setattr(case.serving._slots, "switch", asked_meanwhile)
    report = case.serving.end_trial()
    assert (report.standing, report.detail) == (Standing.ROLLED_BACK, "it could not answer: it broke")
    again = case.restarted()
    assert (case.serving.release, again.release, again.report) == (before, before, report)


def test_model_whose_confirmation_cannot_be_stored_goes_back(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    case.begin(2)

    def full(_: object) -> None:
        monkeypatch.undo()
        raise DiskFullError("no space left")

    monkeypatch.setattr(case.serving._slots, "keep_report", full)
    report = case.serving.end_trial()
    assert (report.standing, report.detail) == (Standing.ROLLED_BACK, "no space left")
    again = case.restarted()
    assert (case.serving.release, again.release, again.report) == (1, 1, report)


def test_confirmed_model_that_cannot_answer_says_so(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: there is no model before to ask."""

    def fail(_: object) -> None:
        raise ModelFormatError("it broke")

    monkeypatch.setattr(case.serving._engine, "predict", fail)
    with pytest.raises(ModelFormatError, match="it broke"):
        case.serving.predict(["good film"])


@pytest.mark.parametrize("trial", [LONG, Trial(min_accuracy=1.0)])
def test_release_that_ends_the_trial_of_another_and_fails_gives_way_to_what_was_confirmed(
    case: Case, monkeypatch: pytest.MonkeyPatch, trial: Trial
) -> None:
    case.begin(2)
    case.begin(3, trial)
    if trial is LONG:
        monkeypatch.setattr(case.serving._engine, "predict", lambda _: (_ for _ in ()).throw(ModelFormatError("broke")))
        case.serving.predict(["good film"])
        assert case.serving.end_trial().standing is Standing.ROLLED_BACK
    assert case.serving.release == case.restarted().release == 1


def test_release_is_left_for_the_one_before(case: Case) -> None:
    order = case.begin(2)
    case.serving.end_trial()
    report = case.serving.leave(order)
    assert (report.standing, case.serving.release, case.restarted().release) == (Standing.ROLLED_BACK, 1, 1)
    assert case.serving.leave(order).standing is Standing.ROLLED_BACK
    assert case.serving.release == 1, "said again it changes nothing"


def test_release_on_trial_is_left_at_once(case: Case) -> None:
    order = case.begin(2)
    assert case.serving.leave(order).standing is Standing.ROLLED_BACK
    assert (case.serving.release, case.serving.trial_is_over(time.monotonic() + 9999)) == (1, False)


def test_first_release_is_left_for_none(tmp_path: Path) -> None:
    case = Case(tmp_path)
    order, _ = case.release(1)
    assert case.serving.leave(order).standing is Standing.ROLLED_BACK
    assert (case.serving.release, case.restarted().release) == (0, 0)
    with pytest.raises(ModelFormatError, match=f"no model yet: no agent with its state in {case.folder} has"):
        case.serving.predict(["good film"])


def test_release_that_runs_already_is_measured_and_not_staged_again(case: Case) -> None:
    case.begin(2)
    case.serving.end_trial()
    case.begin(2)
    assert case.report.standing is Standing.HEALTHY
    order, _ = case.release(2)
    case.serving.leave(order)
    assert case.serving.release == 1, "the one before is still there"


def test_model_that_needs_a_newer_onnxruntime_is_not_tried(case: Case) -> None:
    case.begin(2, onnxruntime="99.0")
    assert "needs onnxruntime 99.0 or newer" in case.report.detail
    assert case.serving.release == 1


def test_model_that_finds_no_memory_is_refused_and_may_be_assigned_again(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error that came out would leave its release under way for ever."""
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "try_out", lambda _: (_ for _ in ()).throw(MemoryError))
        case.begin(2)
    assert (case.report.standing, case.serving.release) == (Standing.ROLLED_BACK, 1)
    assert case.report.detail == "there is not enough memory to try it beside what runs"
    case.begin(2)
    assert case.report.standing is Standing.TRYING


def test_held_out_text_without_a_token_is_no_fault_of_the_model(case: Case) -> None:
    order, files = case.release(2)
    assert order.model is not None
    held_out = TextExamples(("", "good film"), ("negative", "positive"))
    report = case.serving.install(order, order.model, files, held_out)
    assert (report.standing, report.samples) == (Standing.TRYING, 1)


def test_held_out_texts_of_which_none_has_a_token_are_no_fault_of_the_model(case: Case) -> None:
    """As where the only one is empty: every release would be rolled back for ever."""
    order, files = case.release(2, Trial(min_accuracy=1.0, max_accuracy_loss=0.0))
    assert order.model is not None
    report = case.serving.install(order, order.model, files, TextExamples(("",), ("negative",)))
    assert (report.standing, report.accuracy) == (Standing.TRYING, None)


def test_held_out_examples_that_do_not_fit_the_model_before_are_no_fault_of_the_next(
    case: Case, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As where a label is new. The other conditions hold nevertheless."""
    monkeypatch.setattr(case.serving._engine, "_labels", LABELS[:1])
    case.begin(2, Trial(max_accuracy_loss=0.0))
    assert case.report.standing is Standing.TRYING
    assert "the model before cannot be compared with: example" in caplog.text
    case.begin(3, Trial(max_accuracy_loss=0.0, min_accuracy=1.0))
    assert (case.report.standing, case.serving.release) == (Standing.ROLLED_BACK, 1)


@pytest.mark.parametrize("held_out", [HELD_OUT, None])
def test_model_whose_logits_are_not_finite_never_serves(case: Case, held_out: TextExamples | None) -> None:
    """It would answer, with the first label and the probability nan."""
    broken = {name: values * np.float32(np.nan) for name, values in parameters(2).items()}
    model = case.folder / "broken"
    model.write_bytes(inference_model(broken).SerializeToString())
    order, files = case.release(2)
    entry = BlobEntry(part=Part.INFERENCE_MODEL, digest=digest_of(model.read_bytes()), size_bytes=1)
    assert order.model is not None
    released = msgspec.structs.replace(order.model, manifest=(entry, order.model.manifest[1]))
    report = case.serving.install(order, released, files | {Part.INFERENCE_MODEL: model}, held_out)
    assert (report.standing, case.serving.release) == (Standing.ROLLED_BACK, 1)
    assert report.detail == "the model gives logits that are not finite; release another"


def test_who_only_asks_writes_nothing_where_the_model_is_damaged(case: Case) -> None:
    order, files = case.release(2)
    assert installed(case.serving, order, files, HELD_OUT).standing is Standing.HEALTHY
    current = case.folder / "slots" / "current"
    letter = current.read_text()
    (case.folder / "slots" / letter / "inference-model").write_bytes(b"rot")
    asked = Serving(case.folder / "slots", threads=1, is_only_asked=True)
    assert (asked.release, current.read_text()) == (1, letter), "as on a read-only disk"
    assert asked.predict(["good film"])[0].label in LABELS
