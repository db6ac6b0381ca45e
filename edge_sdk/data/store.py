"""A device's examples as they grow: reread, split once and for all, and stored if they arrive one by one.

    learnt.jsonl         examples from :meth:`ExampleStore.learn` or an iterator; of equal inputs the last one counts
    split.json           what the split has to remember, see :mod:`.holdout`
    examples.jsonl, npz  the training part, as the training process reads it

Nothing in these files is ever sent.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from edge_sdk.data.examples import Examples, joined, task_of
from edge_sdk.data.files import write_examples
from edge_sdk.data.holdout import Past, decide, divide, example_keys
from edge_sdk.data.images import IMAGE_SIZE
from edge_sdk.data.log import ExampleLog
from edge_sdk.data.owned import Owned, one_example, source_of
from edge_sdk.decoding import UNDECODABLE
from edge_sdk.disk import disk_errors, write_durably
from edge_sdk.errors import ConfigurationError, DataFormatError, RaffmError, StorageError
from edge_sdk.protocol.messages import Holding

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_Version = tuple[object, int]
_COUNT_S = 60.0  # between two counts; seldom, since each reads all examples
_PAUSE_TIMES = 20  # the time that the last count took, which is minutes with thousands of pictures
_RETRY_S = 30.0  # until the disk is tried again
_OWN_FILES = ("examples.jsonl", "examples.npz", "learnt.jsonl")


class ExampleStore:
    """The examples of one task: those of ``owned`` and of :meth:`learn`, with files in ``folder``.

    The ``share`` that is held out depends on ``seed``.

    Attributes:
        training_file: the file to train on, ``None`` while there is no example.
        held_out: the examples to judge models by, ``None`` while there is none.

    Raises ``DataFormatError`` if ``owned`` cannot be used, ``StorageError`` where the disk refuses.
    """

    def __init__(self, owned: Owned, folder: Path, *, share: float, seed: int, image_size: int = IMAGE_SIZE) -> None:
        self.training_file: Path | None = None
        self.held_out: Examples | None = None
        self._holding: Holding | None = None
        self._count_due_s = 0.0
        _refuse_own_file(owned, folder)
        self._source = source_of(owned, image_size, scratch=folder)
        self._folder, self._share, self._seed, self._image_size = folder, share, seed, image_size
        self._learnt = ExampleLog(folder / "learnt.jsonl")
        self._past = self._past_on_disk = _read_past(folder / "split.json")
        self._written: _Version | None = None  # of what training_file holds; None if the source cannot say its version
        self._counted: _Version | None = None
        self._first: Examples | None = None  # what is learnt has to be of its kind
        self._learning = threading.Lock()
        self._stopping = threading.Event()
        self._forget_replaced()
        self.refresh()

    def start(self) -> None:
        """Begin to read from an iterator, if the examples come from one, on a thread of its own."""
        if self._source.coming is not None:
            arguments = (self._source.coming,)
            threading.Thread(target=self._drain, args=arguments, name="examples", daemon=True).start()

    def stop(self) -> None:
        """Stop reading from an iterator; the item that it is about to yield is still stored."""
        self._stopping.set()

    def learn(self, given: object) -> None:
        """Add an example, or replace the one with the same input. From any thread; durable when this returns.

        Raises ``DataFormatError`` if ``given`` is no example, or of another kind than those that are there.
        """
        example = one_example(given, self._image_size)
        with self._learning:
            if self._first is not None:
                joined(self._first, example)
            self._learnt.append(example)
            self._first = self._first or example

    def refresh(self) -> None:
        """Read the examples again if they have changed. Raises as the constructor, and then changes nothing."""
        version = self._version()
        if version == self._written:
            return
        training = self._read()
        if training is None or not len(training):
            self._drop_training_files()
        else:
            self._keep_split(self._past)
            self.training_file = write_examples(self._folder / "examples", training)
        self._written = self._counted = version if version[0] is not None else None

    def holding(self) -> Holding | None:
        """What there is to train on, as the coordinator is told; ``None`` if there is nothing.

        It is at most a minute old, or older where looking takes seconds, so that this takes a twentieth of the time.
        """
        if self._holding is None or time.monotonic() >= self._count_due_s:
            self._keep_or(self._count)
        return self._holding

    def newest(self) -> Path | None:
        """The file to train on now, ``None`` if there is no example.

        If the source is being written, has become invalid, or the disk is full, the examples stay as they were.
        """
        self._keep_or(self.refresh)
        return self.training_file

    def _keep_or(self, look: Callable[[], None]) -> None:
        began_s = time.monotonic()
        try:
            look()
        except (DataFormatError, StorageError) as error:
            _log.warning("the examples are not updated: %s", error)
        ended_s = time.monotonic()
        self._count_due_s = max(began_s + _COUNT_S, ended_s + _PAUSE_TIMES * (ended_s - began_s))

    def _count(self) -> None:
        """Count the examples without writing them: a device that waits for work must not wear out its disk."""
        version = self._version()
        if version != self._counted:
            self._read()
            self._counted = version if version[0] is not None else None

    def _version(self) -> _Version:
        return _own(self._source.version), self._learnt.size_bytes

    def _read(self) -> Examples | None:
        """Read and split all examples; the training part, ``None`` if there is no example (any more)."""
        examples = self._all()
        if examples is None:
            self.held_out = self._holding = None
            with self._learning:
                self._first = self._first if self._learnt.size_bytes else None  # the first may have come meanwhile
            return None
        return self._split(examples)

    def _drop_training_files(self) -> None:
        """What an application takes back is not trained on, and does not stay on the disk."""
        self.training_file = None
        for suffix in (".jsonl", ".npz"):
            file = self._folder / f"examples{suffix}"
            with disk_errors(file):
                file.unlink(missing_ok=True)

    def _all(self) -> Examples | None:
        owned, learnt = _own(self._source.read), self._learnt.read()
        if learnt is None:
            return owned
        learnt = _latest(learnt, self._seed)
        if owned is None:
            return learnt
        replaced = {*example_keys(learnt, self._seed)}
        kept = [place for place, key in enumerate(example_keys(owned, self._seed)) if key not in replaced]
        try:
            return joined(owned.take(kept), learnt)
        except DataFormatError as error:
            file = self._folder / "learnt.jsonl"
            raise DataFormatError(f"{file} was learnt from other examples ({error}); move it away") from error

    def _split(self, examples: Examples) -> Examples:
        is_held_out, past = decide(example_keys(examples, self._seed), self._share, self._past)
        if self._past_on_disk is None or past.held_out != self._past_on_disk.held_out:
            self._keep_split(past)
        self._past = past
        training, self.held_out = divide(examples, is_held_out)
        self._holding = Holding(suits=task_of(training), examples=len(training)) if len(training) else None
        self._first = examples.take([0])
        return training

    def _keep_split(self, past: Past | None) -> None:
        """Store the split, whose file grows with the examples, before any is trained on or judges a model."""
        if past != self._past_on_disk:
            file = self._folder / "split.json"
            with disk_errors(file):
                write_durably(file, msgspec.json.encode(past))
            self._past_on_disk = past

    def _forget_replaced(self) -> None:
        """Drop examples that later ones replace, so that an iterator that restarts does not make the file grow."""
        learnt = self._learnt.read()
        if learnt is not None and len(latest := _latest(learnt, self._seed)) < len(learnt):
            self._learnt.replace(latest)

    def _drain(self, coming: Iterator[object]) -> None:
        for number, given in enumerate(_until_it_fails(coming), start=1):
            self._keep(number, given)
            if self._stopping.is_set():
                return

    def _keep(self, number: int, given: object) -> None:
        """Learn ``given``; if the disk refuses, try again after a pause until it succeeds or :meth:`stop` is called."""
        while True:
            try:
                self.learn(given)
            except DataFormatError:  # its text could quote the example, which must not get into the log
                _log.warning(
                    "item %d of the examples is left out: it is not an example, or of another kind than the rest",
                    number,
                )
            except StorageError as error:
                _log.warning("item %d of the examples cannot be stored yet: %s", number, error)
                if not self._stopping.wait(_RETRY_S):
                    continue
            except ConfigurationError as error:
                _log.error("item %d of the examples is left out: %s", number, error)
            return


def _refuse_own_file(owned: Owned, folder: Path) -> None:
    """Raise ``DataFormatError`` if an application's file has the name of one that the store writes over."""
    if isinstance(owned, str | Path) and Path(owned).resolve() in {(folder / name).resolve() for name in _OWN_FILES}:
        raise DataFormatError(f"{owned} is the agent's own file; give yours another name")


def _until_it_fails(coming: Iterator[object]) -> Iterator[object]:
    """What ``coming`` yields; if it raises, the iteration ends, and the log names the type of the exception."""
    end = object()
    try:
        while (given := _own(lambda: next(coming, end))) is not end:
            yield given
    except RaffmError as error:
        kind = type(error.__cause__ or error).__name__
        _log.error("the iterator of examples raised %s; no more examples are read from it", kind)


def _own(ask: Callable[[], _T]) -> _T:
    """What ``ask``, code of the application, returns. Whatever it raises becomes a ``DataFormatError``.

    The error names only the exception's type, since its text could quote an example. Errors of this project pass.
    """
    try:
        return ask()
    except RaffmError:
        raise
    except Exception as error:
        raise DataFormatError(f"the examples cannot be read: they raised {type(error).__name__}") from error


def _latest(examples: Examples, seed: int) -> Examples:
    """The last example of each input, in order."""
    places = {key: place for place, key in enumerate(example_keys(examples, seed))}
    return examples.take(sorted(places.values()))


def _read_past(file: Path) -> Past | None:
    try:
        with disk_errors(file):
            return msgspec.json.decode(file.read_bytes(), type=Past) if file.exists() else None
    except UNDECODABLE as error:
        raise StorageError(f"{file} cannot be read ({error}); remove it, and the split is decided anew") from error
