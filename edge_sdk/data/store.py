"""A device's examples as they grow: read anew, split for good, and what came one by one kept on disk.

    learnt.jsonl         what :meth:`ExampleStore.learn` was told, and an iterator yielded; of an input the last counts
    split.json           what the split has to remember, see :mod:`.holdout`
    examples.jsonl, npz  the training part, as the training process reads it

Nothing here is ever sent.
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
_COUNT_S = 60.0  # seldom: examples that grow are read whole
_RETRY_S = 30.0  # until the disk is asked again


class ExampleStore:
    """What ``owned`` and :meth:`learn` give, in ``folder``; ``share`` of it, told by ``seed``, is held out.

    Attributes:
        training_file: what to train on, ``None`` while there is nothing.
        held_out: what to judge models by, ``None`` while there is nothing.

    Raises ``DataFormatError`` where ``owned`` cannot be used, ``StorageError`` where the disk refuses.
    """

    def __init__(self, owned: Owned, folder: Path, *, share: float, seed: int, image_size: int = IMAGE_SIZE) -> None:
        self.training_file: Path | None = None
        self.held_out: Examples | None = None
        self._holding: Holding | None = None
        self._counted_s = 0.0
        self._source = source_of(owned, image_size, scratch=folder)
        self._folder, self._share, self._seed, self._image_size = folder, share, seed, image_size
        self._learnt = ExampleLog(folder / "learnt.jsonl")
        self._past = _read_past(folder / "split.json")
        self._written: _Version | None = None  # of the source's last reading, where it can say whether it has changed
        self._counted: _Version | None = None
        self._first: Examples | None = None
        self._stopping = threading.Event()
        self._forget_replaced()
        self.refresh()

    def start(self) -> None:
        """Begin to take what an iterator yields, on a thread of its own."""
        if self._source.coming is not None:
            arguments = (self._source.coming,)
            threading.Thread(target=self._drain, args=arguments, name="examples", daemon=True).start()

    def stop(self) -> None:
        """Take no more from an iterator than what it is about to yield; that is still kept."""
        self._stopping.set()

    def learn(self, given: object) -> None:
        """Add an example, or replace the one of the same input; from any thread, and durable when this returns.

        Raises ``DataFormatError`` where ``given`` is none, or of another kind than those that are there.
        """
        example = one_example(given, self._image_size)
        if self._first is not None:
            joined(self._first, example)
        self._learnt.append(example)
        self._first = self._first or example

    def refresh(self) -> None:
        """Read what is new. Raises what the constructor raises, and then leaves everything as it was."""
        version = self._version()
        if version == self._written or (training := self._read()) is None:
            return
        self.training_file = write_examples(self._folder / "examples", training) if len(training) else None
        self._written = self._counted = version if version[0] is not None else None

    def holding(self) -> Holding | None:
        """What there is to train on, or was a minute ago, as the coordinator is told; ``None`` where nothing is."""
        if self._holding is None or time.monotonic() - self._counted_s >= _COUNT_S:
            self._keep_or(self._count)
        return self._holding

    def newest(self) -> Path | None:
        """What to train on now, ``None`` where there is nothing.

        A file that somebody is writing, rows gone bad, or a full disk cost what is new, never what was there before.
        """
        self._keep_or(self.refresh)
        return self.training_file

    def _keep_or(self, look: Callable[[], None]) -> None:
        self._counted_s = time.monotonic()
        try:
            look()
        except (DataFormatError, StorageError) as error:
            _log.warning("the examples stay as they were: %s", error)

    def _count(self) -> None:
        """Read what is new, and leave it to the next training to have it written: a device that waits wears no disk."""
        version = self._version()
        if version != self._counted and self._read() is not None:
            self._counted = version if version[0] is not None else None

    def _version(self) -> _Version:
        return _own(self._source.version), self._learnt.size_bytes

    def _read(self) -> Examples | None:
        """The training part, with the other held out; ``None`` where there is nothing."""
        examples = self._all()
        return None if examples is None else self._split(examples)

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
        if past != self._past:
            file = self._folder / "split.json"
            with disk_errors(file):
                write_durably(file, msgspec.json.encode(past))
            self._past = past
        training, self.held_out = divide(examples, is_held_out)
        self._holding = Holding(suits=task_of(training), examples=len(training)) if len(training) else None
        self._first = examples.take([0])
        return training

    def _forget_replaced(self) -> None:
        """An iterator that begins anew after every start must not make the file grow for ever."""
        learnt = self._learnt.read()
        if learnt is not None and len(latest := _latest(learnt, self._seed)) < len(learnt):
            self._learnt.replace(latest)

    def _drain(self, coming: Iterator[object]) -> None:
        for number, given in enumerate(_until_it_fails(coming), start=1):
            self._keep(number, given)
            if self._stopping.is_set():
                return

    def _keep(self, number: int, given: object) -> None:
        """Learn ``given``; where the disk refuses, again after a pause, until it takes it or :meth:`stop` is called."""
        while True:
            try:
                self.learn(given)
            except DataFormatError:  # its words would put the example into the log
                _log.warning("item %d of the examples is no example, or of another kind, and is left out", number)
            except StorageError as error:
                _log.warning("item %d of the examples waits for the disk: %s", number, error)
                if not self._stopping.wait(_RETRY_S):
                    continue
            except ConfigurationError as error:
                _log.error("item %d of the examples is left out: %s", number, error)
            return


def _until_it_fails(coming: Iterator[object]) -> Iterator[object]:
    """What ``coming`` yields; the log names the type of what it raises."""
    end = object()
    try:
        while (given := _own(lambda: next(coming, end))) is not end:
            yield given
    except RaffmError as error:
        kind = type(error.__cause__ or error).__name__
        _log.error("the iterator of examples ended with %s; no more are taken from it", kind)


def _own(ask: Callable[[], _T]) -> _T:
    """What ``ask`` returns. An application's own may raise anything: beside the tree's, it is a ``DataFormatError``.

    That names the type alone, since the words may be an example's.
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
