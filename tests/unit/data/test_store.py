"""A device's examples while they grow: learnt, drained, read anew, and the same after a restart or a torn write."""

from __future__ import annotations

import errno
import logging
import os
import resource
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sdk.data import ArrayExamples, Examples, TaggedExamples, TextExamples, read_examples
from edge_sdk.data import log as log_module
from edge_sdk.data.log import ExampleLog
from edge_sdk.data.owned import Owned
from edge_sdk.data.store import ExampleStore
from edge_sdk.elastic.submodel import ModelTask
from edge_sdk.errors import DataFormatError, StorageError
from edge_sdk.protocol.messages import Holding

MAIL = [(f"mail {number}", "spam" if number % 2 else "ham") for number in range(40)]


def store_of(owned: Owned, folder: Path, share: float = 0.2) -> ExampleStore:
    return ExampleStore(owned, folder, share=share, seed=1)


def pairs(examples: Examples | None) -> dict[str, str]:
    if examples is None:
        return {}
    assert isinstance(examples, TextExamples)
    return dict(zip(examples.texts, examples.labels, strict=True))


def trained_on(store: ExampleStore) -> dict[str, str]:
    return {} if store.training_file is None else pairs(read_examples(store.training_file))


def everything(store: ExampleStore) -> dict[str, str]:
    store.refresh()
    return trained_on(store) | pairs(store.held_out)


def eventually(holds: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 5
    while not holds():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_holding_counts_what_is_trained_on_and_follows_within_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mail = MAIL[:1]
    store = store_of(mail, tmp_path, share=0.0)
    assert store.holding() == Holding(suits=ModelTask.TEXT_CLASSIFICATION, examples=1)
    mail.extend(MAIL[1:])
    assert store.holding() == Holding(suits=ModelTask.TEXT_CLASSIFICATION, examples=1)
    later_s = time.monotonic() + 60
    monkeypatch.setattr(time, "monotonic", lambda: later_s)
    assert store.holding() == Holding(suits=ModelTask.TEXT_CLASSIFICATION, examples=40)


class Slow:
    """Examples that take a minute and a half to read, by the clock that it moves on."""

    def __init__(self) -> None:
        self.now_s, self.reads = 1000.0, 0

    def __iter__(self) -> Iterator[tuple[str, str]]:
        self.reads += 1
        self.now_s += 90.0
        return iter(MAIL)


def test_examples_that_take_long_to_read_are_counted_seldom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As thousands of pictures do on a board; the agent does nothing else meanwhile."""
    slow = Slow()
    monkeypatch.setattr(time, "monotonic", lambda: slow.now_s)
    store = store_of(slow, tmp_path)
    store.newest()
    reads = slow.reads
    for _ in range(29):
        slow.now_s += 60
        store.holding()
    assert slow.reads == reads
    slow.now_s += 60
    store.holding()
    assert slow.reads == reads + 1


def test_examples_that_are_all_taken_back_are_trained_on_no_more_and_leave_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mail = MAIL[:20]
    store = store_of(mail, tmp_path)
    mail.clear()
    later_s = time.monotonic() + 60
    monkeypatch.setattr(time, "monotonic", lambda: later_s)
    assert store.holding() is None
    assert store.newest() is store.held_out is None
    assert not list(tmp_path.glob("examples*"))
    store.learn((["New", "York"], ["PLACE", "PLACE"]))
    assert store.holding() == Holding(suits=ModelTask.TOKEN_CLASSIFICATION, examples=1)


def test_device_that_waits_does_not_write_its_examples_until_it_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mail = MAIL[:1]
    store = store_of(mail, tmp_path, share=0.0)
    written = store.training_file
    assert written is not None
    files = written, tmp_path / "split.json"
    first = [file.stat().st_ino for file in files]
    for minutes, count in ((1, 20), (2, 40)):
        mail.extend(MAIL[len(mail) : count])
        later_s = time.monotonic() + 60 * minutes
        monkeypatch.setattr(time, "monotonic", lambda later_s=later_s: later_s)
        assert store.holding() == Holding(suits=ModelTask.TEXT_CLASSIFICATION, examples=count)
        assert [file.stat().st_ino for file in files] == first
    store.newest()
    assert trained_on(store) == dict(MAIL)
    assert all(file.stat().st_ino != before for file, before in zip(files, first, strict=True))


def test_file_that_was_counted_is_still_written_for_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mail.csv"
    _write_csv(file, MAIL[:3])
    store = store_of(file, tmp_path / "state", share=0.0)
    _write_csv(file, MAIL)
    later_s = time.monotonic() + 60
    monkeypatch.setattr(time, "monotonic", lambda: later_s)
    assert store.holding() == Holding(suits=ModelTask.TEXT_CLASSIFICATION, examples=40)
    assert trained_on(store) == dict(MAIL[:3])
    store.newest()
    assert trained_on(store) == dict(MAIL)


def _write_csv(file: Path, mail: list[tuple[str, str]]) -> None:
    file.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in mail), encoding="utf-8")


def test_nothing_is_held_before_the_first_example(tmp_path: Path) -> None:
    mail = list[tuple[str, str]]()
    store = store_of(mail, tmp_path)
    assert store.holding() is None
    mail.extend(MAIL)
    assert store.holding() is not None


def test_list_that_grows_is_read_anew_and_splits_the_same(tmp_path: Path) -> None:
    mail = MAIL[:3]
    store, held_out = store_of(mail, tmp_path), dict[str, str]()
    for number in range(3, 40):
        mail.append(MAIL[number])
        assert everything(store) == dict(mail)
        assert held_out.items() <= pairs(store.held_out).items()
        held_out = pairs(store.held_out)
    again = store_of(list(reversed(mail)), tmp_path)
    assert pairs(again.held_out) == held_out


def test_nothing_yet_is_no_error(tmp_path: Path) -> None:
    mail: list[tuple[str, str]] = []
    store = store_of(mail, tmp_path)
    assert (store.training_file, store.held_out) == (None, None)
    mail.append(MAIL[0])
    assert everything(store) == dict(mail)


class Broken:
    """An application's own, which fails from the second time on."""

    def __init__(self, times: int) -> None:
        self.times = times

    def __iter__(self) -> Iterator[tuple[str, str]]:
        yield MAIL[0]
        self.times -= 1
        if self.times < 0:
            raise ConnectionError("canary: the words of an example")


def test_iterable_that_raises_costs_only_what_is_new(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = store_of(Broken(1), tmp_path)
    before = trained_on(store)
    assert before
    store.newest()
    assert trained_on(store) == before
    assert "the examples are not updated: the examples cannot be read: they raised ConnectionError" in caplog.text
    assert "canary" not in caplog.text
    with pytest.raises(DataFormatError, match="they raised ConnectionError"):
        store_of(Broken(0), tmp_path / "other")


def test_learnt_example_is_kept_and_a_correction_replaces(tmp_path: Path) -> None:
    store = store_of(MAIL, tmp_path)
    held_out = next(iter(pairs(store.held_out)))
    for text in ("new", "mail 3", held_out):
        store.learn((text, "corrected"))
    store.learn(("new", "corrected twice"))
    again = store_of(MAIL, tmp_path)
    for each in (store, again):
        assert everything(each) == dict(MAIL) | {"mail 3": "corrected", held_out: "corrected", "new": "corrected twice"}
        assert pairs(each.held_out)[held_out] == "corrected"
        assert held_out not in trained_on(each)


def test_learning_alone_needs_no_other_examples(tmp_path: Path) -> None:
    store = store_of((), tmp_path)
    store.learn((("New", "York"), ("PLACE", "PLACE")))
    store.refresh()
    assert store.training_file is not None
    assert read_examples(store.training_file) == TaggedExamples((("New", "York"),), (("PLACE", "PLACE"),))


def test_first_that_was_learnt_and_trained_on_is_never_held_out(tmp_path: Path) -> None:
    for seed in range(8):
        store = ExampleStore((), tmp_path / str(seed), share=0.2, seed=seed)
        for number, given in enumerate(MAIL[:12]):
            store.learn(given)
            store.refresh()
            assert MAIL[0][0] in trained_on(store)
            assert bool(pairs(store.held_out)) == (number > 0)


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_arrays_are_learnt_exactly(tmp_path: Path, dtype: type[np.generic]) -> None:
    shape = (6, 4, 3) if dtype is np.float32 else (6, 4, 4, 3)
    values = (np.random.default_rng(0).random(shape) * 255).astype(dtype)
    store = store_of((), tmp_path, share=0.0)
    for number, value in enumerate(values):
        store.learn((value, f"class {number}"))
    store.refresh()
    assert store.training_file is not None
    found = read_examples(store.training_file)
    assert isinstance(found, ArrayExamples)
    np.testing.assert_array_equal(found.values, values)
    assert (found.values.dtype, found.labels[5]) == (dtype, "class 5")


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (("a", 0.5), "the example row 1 needs a text and a label"),
        ("a text alone", "PlainTexts cannot be added to TextExamples"),
        ((np.zeros((4, 3)), "x"), "ArrayExamples cannot be added to TextExamples"),
        (([[10**400]], "x"), "the example row 1 needs an array of numbers and a label"),
    ],
)
def test_what_is_no_example_of_the_kind_is_not_learnt(tmp_path: Path, given: object, complaint: str) -> None:
    store = store_of(MAIL, tmp_path)
    with pytest.raises(DataFormatError, match=complaint):
        store.learn(given)
    assert everything(store) == dict(MAIL)


def test_window_of_another_shape_is_not_learnt(tmp_path: Path) -> None:
    store = store_of((np.zeros((4, 8, 2)), np.array(["x"] * 4)), tmp_path)
    with pytest.raises(DataFormatError, match=r"float32 \(9, 2\) cannot be added to float32 \(8, 2\)"):
        store.learn((np.zeros((9, 2)), "x"))
    with pytest.raises(DataFormatError, match="labels are names here and numbers there"):
        store.learn((np.zeros((8, 2)), 1))


def test_first_examples_of_two_threads_are_of_one_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With both in its file, the agent could not be started any more."""
    store, append = store_of((), tmp_path), ExampleLog.append
    monkeypatch.setattr(ExampleLog, "append", lambda log, more: time.sleep(0.1) or append(log, more))
    refused = list[DataFormatError]()

    def learn(given: object) -> None:
        try:
            store.learn(given)
        except DataFormatError as error:
            refused.append(error)

    threads = [threading.Thread(target=learn, args=(given,)) for given in (MAIL[0], "a text alone")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 1
    assert store_of((), tmp_path).training_file is not None


def test_first_example_that_comes_while_there_is_none_still_says_the_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_of([], tmp_path)
    read = store._all
    monkeypatch.setattr(store, "_all", lambda: (read(), store.learn(MAIL[0]))[0])
    store.refresh()
    with pytest.raises(DataFormatError, match="PlainTexts cannot be added to TextExamples"):
        store.learn("a text alone")


@pytest.mark.parametrize("name", ["examples.jsonl", "learnt.jsonl"])
def test_application_s_file_where_the_store_writes_its_own_is_refused_and_stays(tmp_path: Path, name: str) -> None:
    """The training part would be written over it, without what is held out."""
    rows = b"".join(b'{"text": "%b", "label": "%b"}\n' % (text.encode(), label.encode()) for text, label in MAIL)
    (tmp_path / name).write_bytes(rows + b'{"text": "half')
    (tmp_path / "link").symlink_to(tmp_path)
    for path in (tmp_path / name, str(tmp_path / "link" / name)):
        with pytest.raises(DataFormatError, match=f"{name} is the agent's own file; give yours another name"):
            store_of(path, tmp_path)
    assert (tmp_path / name).read_bytes() == rows + b'{"text": "half'


def test_half_written_line_is_dropped_and_the_rest_kept(tmp_path: Path) -> None:
    store = store_of((), tmp_path)
    store.learn(MAIL[0])
    with (tmp_path / "learnt.jsonl").open("ab") as file:
        file.write(b'{"text": "torn')
    again = store_of((), tmp_path)
    again.learn(MAIL[1])
    assert everything(again) == dict(MAIL[:2])


def test_log_that_is_opened_is_not_read_into_memory(tmp_path: Path) -> None:
    """Of pictures, half a MiB each, it may be larger than the memory of a board; the last line may be torn anywhere."""
    whole = b"[%b]\n" % (b" " * (3 << 20))
    path = tmp_path / "learnt.jsonl"
    for torn in (b"", b"[", b"[" * (2 << 20)):
        path.write_bytes(4 * whole + torn)
        tracemalloc.start()
        try:
            ExampleLog(path)
            assert tracemalloc.get_traced_memory()[1] < 3 << 20
        finally:
            tracemalloc.stop()
        assert path.stat().st_size == 4 * len(whole)
    path.write_bytes(b"[" * (2 << 20))
    ExampleLog(path)
    assert path.stat().st_size == 0


def test_learning_waits_for_nobody_who_reads_what_was_learnt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a thousand pictures that takes a minute, and an application's own thread would stand still."""
    store, read = store_of((), tmp_path), log_module.read_jsonl
    store.learn(MAIL[0])
    is_reading, may_go_on = threading.Event(), threading.Event()

    def slowly(path: Path, **how: Any) -> Examples:
        is_reading.set()
        assert may_go_on.wait(10)
        return read(path, **how)

    monkeypatch.setattr(log_module, "read_jsonl", slowly)
    reader = threading.Thread(target=store.refresh)
    reader.start()
    assert is_reading.wait(10)
    learner = threading.Thread(target=store.learn, args=(MAIL[1],))
    learner.start()
    learner.join(5)
    is_done = not learner.is_alive()
    with (tmp_path / "learnt.jsonl").open("ab") as file:  # another example is being appended
        file.write(b'{"text": "half')
    may_go_on.set()
    reader.join(10)
    assert is_done
    assert trained_on(store) == dict(MAIL[:1])


def test_log_is_replaced_line_by_line(tmp_path: Path) -> None:
    """As at a start after a label was corrected: of a thousand pictures, all lines took half a GiB at once."""
    pictures = ArrayExamples(np.full((200, 100, 100, 3), 200, dtype=np.uint8), ("x",) * 200)
    log = ExampleLog(tmp_path / "learnt.jsonl")
    tracemalloc.start()
    try:
        log.replace(pictures)
        assert tracemalloc.get_traced_memory()[1] < log.size_bytes / 4
    finally:
        tracemalloc.stop()
    again = log.read()
    assert isinstance(again, ArrayExamples)
    assert (again.values == pictures.values).all()


def test_example_that_only_a_part_of_finds_room_leaves_nothing_behind(tmp_path: Path) -> None:
    """The file may grow by less than a line: a part is written, the rest is refused, and would fit after all."""
    store = store_of((), tmp_path)
    store.learn(MAIL[0])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "learnt.jsonl").stat().st_size + 600, limits[1]))
    try:
        with pytest.raises(StorageError):
            store.learn(("long mail " * 100, "spam"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    store.learn(MAIL[1])
    assert everything(store) == everything(store_of((), tmp_path)) == dict(MAIL[:2])


def test_iterator_is_drained_as_it_yields_and_kept_for_a_restart(tmp_path: Path) -> None:
    more = threading.Event()

    def mail() -> Iterator[object]:
        yield from MAIL[:5]
        more.wait(5)
        yield MAIL[5]

    store = store_of(mail(), tmp_path)
    assert store.training_file is None
    store.start()
    eventually(lambda: everything(store) == dict(MAIL[:5]))
    more.set()
    eventually(lambda: everything(store) == dict(MAIL[:6]))
    store.stop()
    assert everything(store_of(iter(()), tmp_path)) == dict(MAIL[:6])


def test_iterator_that_begins_anew_after_each_start_takes_no_more_disk(tmp_path: Path) -> None:
    sizes = []
    for _ in range(4):
        store = store_of(iter(MAIL), tmp_path)
        store.start()
        eventually(lambda store=store: everything(store) == dict(MAIL) and not _is_draining())
        sizes.append((tmp_path / "learnt.jsonl").stat().st_size)
    assert sizes[-1] <= 2 * sizes[0]


def test_item_that_is_no_example_is_left_out_without_its_words_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = store_of(iter([MAIL[0], ("secret words", None), MAIL[1]]), tmp_path)
    with caplog.at_level(logging.WARNING):
        store.start()
        eventually(lambda: everything(store) == dict(MAIL[:2]))
    assert "item 2 of the examples" in caplog.text
    assert "secret" not in caplog.text


def test_item_waits_for_a_disk_that_is_full_and_what_was_there_is_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("edge_sdk.data.store._RETRY_S", 0.01)
    full, sync = threading.Event(), os.fsync
    full.set()

    def fsync(descriptor: int) -> None:
        if full.is_set() and threading.current_thread().name == "examples":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    store_of((), tmp_path).learn(MAIL[0])
    store = store_of(iter(MAIL[1:3]), tmp_path)
    store.start()
    eventually(lambda: caplog.text.count("item 1 of the examples cannot be stored yet: no space left") >= 2)
    assert everything(store) == dict(MAIL[:1])
    full.clear()
    eventually(lambda: everything(store) == dict(MAIL[:3]))


def test_full_disk_costs_what_is_new_and_not_what_was_trained_on_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mail = MAIL[:20]
    store = store_of(mail, tmp_path)
    before = trained_on(store)
    mail.extend(MAIL[20:])

    def torn(path: Path, _: Examples) -> None:
        path.write_bytes(b'{"text": "to')
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr("edge_sdk.data.files.write_jsonl", torn)
        assert store.newest() is not None
        assert trained_on(store) == before
        assert not list(tmp_path.glob("partial-*"))
    assert store.newest() is not None
    assert trained_on(store).keys() > before.keys()


def test_item_that_waits_for_the_disk_is_given_up_at_the_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = store_of(iter(MAIL), tmp_path)

    def refuse(_: object) -> None:
        raise StorageError("the disk refuses")

    monkeypatch.setattr(store, "learn", refuse)
    store.start()
    eventually(lambda: "item 1 of the examples cannot be stored yet: the disk refuses" in caplog.text)
    store.stop()
    eventually(lambda: not _is_draining())
    assert "item 2" not in caplog.text


def test_iterator_that_raises_is_named_without_its_words_and_what_it_gave_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def mail() -> Iterator[object]:
        yield MAIL[0]
        raise KeyError("secret words")

    store = store_of(mail(), tmp_path)
    store.start()
    eventually(lambda: not _is_draining())
    assert "the iterator of examples raised KeyError; no more examples are read from it" in caplog.text
    assert "secret" not in caplog.text
    assert everything(store) == dict(MAIL[:1])


def test_file_is_read_again_only_once_it_has_changed(tmp_path: Path) -> None:
    data = tmp_path / "data.csv"
    data.write_text("text,label\na,x\nb,y\n")
    store = store_of(data, tmp_path)
    written = store.training_file
    assert written is not None
    written.unlink()
    store.refresh()
    assert not written.exists()
    data.write_text("text,label\na,x\nb,y\nc,z\n")
    assert everything(store) == {"a": "x", "b": "y", "c": "z"}
    data.write_text("text,label\nd\n")
    with pytest.raises(DataFormatError, match="row 1 needs"):
        store.refresh()
    assert trained_on(store) | pairs(store.held_out) == {"a": "x", "b": "y", "c": "z"}


def test_what_was_learnt_from_other_examples_is_named(tmp_path: Path) -> None:
    store_of((), tmp_path).learn("a text alone")
    with pytest.raises(DataFormatError, match=r"learnt\.jsonl was learnt from other examples .* move it away"):
        store_of(MAIL, tmp_path)


def test_damaged_split_is_not_decided_anew_silently(tmp_path: Path) -> None:
    store_of(MAIL[:2], tmp_path)
    (tmp_path / "split.json").write_bytes(b"{")
    with pytest.raises(StorageError, match=r"split\.json cannot be read"):
        store_of(MAIL[:2], tmp_path)


def _is_draining() -> bool:
    return any(thread.name == "examples" for thread in threading.enumerate())
