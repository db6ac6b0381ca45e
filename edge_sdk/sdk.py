"""The agent inside an application: start it, give it examples, ask it for predictions."""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edge_sdk.agent.supervisor import AgentStatus, Supervisor
from edge_sdk.config import AgentConfig, default_state_dir
from edge_sdk.data.owned import Owned
from edge_sdk.errors import ConfigurationError, DeadlineError, RaffmError
from edge_sdk.inference.engine import Given, Prediction
from edge_sdk.protocol.messages import ReleaseReport
from edge_sdk.settings import enrolled_values, typed_values

if TYPE_CHECKING:
    from PIL.Image import Image
    from typing_extensions import Self

_log = logging.getLogger(__name__)
_STOP_S = 10.0


class Agent:
    """A device agent on a thread of its own, started by :meth:`start`, ``with`` or ``async with``.

    Args:
        device: this device's name in the fleet: 1 to 64 of a-z, 0-9 and '-'.
        broker: ``mqtt://host:port`` or ``mqtts://host:port``; left out where the device has enrolled.
        examples: what the device owns: a path, a DataFrame, a Dataset, arrays (x, y), or anything that yields (text,
            label) pairs, now or later; see :mod:`edge_sdk.data.owned`. For several tasks, a dict of 1 to 32, by their
            names. They never leave the device.
        state_dir: where updates, models and the cache live; by default a folder that the platform has for such data.
        on_model: called, on the agent's thread, each time a released model begins to answer. A coroutine function
            runs on the loop that entered ``async with``. An exception that it raises is logged; the agent goes on.
        settings: the other fields of :class:`edge_sdk.AgentConfig`, such as ``profile`` or ``root``.

    Raises ``ConfigurationError`` or ``DataFormatError`` for an argument that cannot be used, and ``StateInUseError`` if
    another agent works in ``state_dir``.

    >>> from tempfile import mkdtemp
    >>> mail = [("cheap pills", "spam"), ("see you at noon", "ham")]
    >>> agent = Agent("pi-5", "mqtt://127.0.0.1:1883", mail, state_dir=mkdtemp())  # it works from agent.start() on
    >>> agent.status.phase.value, agent.status.release
    ('idle', 0)
    >>> agent.learn("cheap flights", "spam")
    >>> agent.predict(["cheap pills"])  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    edge_sdk.errors.ModelFormatError: no model yet: no agent with its state in ... has had a release; ask again later
    >>> agent.stop()
    """

    def __init__(
        self,
        device: str,
        broker: str | None = None,
        examples: Owned = (),
        *,
        state_dir: Path | str | None = None,
        on_model: Callable[[ReleaseReport], object] | None = None,
        **settings: Any,  # noqa: ANN401 - AgentConfig types and checks them
    ) -> None:
        named = {"device": device, **({} if broker is None else {"broker": broker}), **settings}
        given = typed_values(named if state_dir is None else {"state_dir": state_dir, **named})
        folder = given.pop("state_dir", None) or default_state_dir(given["device"])
        values = enrolled_values(folder, given["device"]) | given
        if "broker" not in values:
            raise ConfigurationError(f"{device} has no broker: give one, or enrol the device (`edge-agent enroll`)")
        self.config = AgentConfig(state_dir=folder, **values)
        self._on_model = on_model
        self._loop: asyncio.AbstractEventLoop | None = None
        self._supervisor = Supervisor(self.config, examples, on_model=self._tell)
        self._thread = threading.Thread(target=self._run, name=f"agent-{device}", daemon=True)
        self._failure: BaseException | None = None
        self._trace: TracebackType | None = None
        self._is_used = False

    @property
    def status(self) -> AgentStatus:
        """What the agent is doing now. Raises the error that ended the agent, if one did."""
        if self._failure is not None:
            raise self._failure.with_traceback(self._trace)  # otherwise each raise makes it longer
        return self._supervisor.status

    def start(self) -> None:
        """Begin to work in the background; possible once. :attr:`status` says how it goes.

        A broker that does not answer, or does not let the device in, is tried again for as long as the agent runs.
        This call takes about 0.2 s, in which it measures the processor's speed. Raises ``ConfigurationError`` if the
        agent was started or stopped before, or if ``on_model`` is a coroutine function and there is no loop to run it.
        """
        if inspect.iscoroutinefunction(self._on_model) and self._loop is None:
            raise ConfigurationError("on_model is a coroutine function: enter the agent with `async with`")
        if self._is_used:
            raise ConfigurationError(f"agent {self.config.device} was started or stopped before: make another Agent")
        self._is_used = True
        self._supervisor.measure()
        self._thread.start()

    def predict(self, given: Given, *, task: str | None = None) -> list[Prediction]:
        """The newest model's answers, offline too and from any thread. ``task`` is needed if there are several.

        ``given`` are texts, or one array: windows, floats (n, steps, channels), or images, uint8 (n, height, width,
        channels). Raises ``ModelFormatError`` before the task's first release, ``DataFormatError`` for an array of
        another shape or a text that the model's tokenizer turns into no token, ``ConfigurationError`` for an unknown
        task.

        >>> [(found.label, round(found.probability, 2)) for found in agent.predict(["good film", "awful film"])]
        [('positive', 0.75), ('negative', 0.9)]
        """
        return self._supervisor.tasks.chosen(task).serving.predict(given)

    def tag(self, sentences: Sequence[Sequence[str]], *, task: str | None = None) -> list[list[Prediction]]:
        """The tag of each word of each sentence, in a task that tags words; otherwise as :meth:`predict`.

        Raises ``DataFormatError`` for a word that the model's tokenizer turns into no token.

        >>> [[found.label for found in words] for words in tagger.tag([["the", "bad", "film"], ["good"]])]
        [['positive', 'negative', 'positive'], ['positive']]
        """
        return self._supervisor.tasks.chosen(task).serving.tag(sentences)

    def generate(self, texts: Sequence[str], *, max_new_tokens: int = 64, task: str | None = None) -> list[str]:
        """What the model writes: a continuation of each of ``texts`` or, in text-to-text tasks, an answer to it.

        Decoding is greedy, so the same text gets the same result, of at most ``max_new_tokens`` tokens. A text with its
        continuation, or an answer by itself, is at most as long as the texts that the model was trained on. Nothing is
        cached between tokens: each costs as much as reading everything before it. Otherwise as :meth:`predict`; raises
        ``DataFormatError`` for a text that leaves no room for a continuation.

        >>> writer.generate(["the good"], max_new_tokens=2)
        [' film film']
        """
        return self._supervisor.tasks.chosen(task).serving.generate(texts, max_new_tokens)

    def learn(
        self,
        given: str | Sequence[str] | NDArray[Any] | Image | Path,
        label: str | int | np.integer[Any] | Sequence[str] | None = None,
        *,
        task: str | None = None,
    ) -> None:
        """Add an example, or correct the label of one that is there: the user knows better than the model.

        ``given`` is a text, a window, or an image (an array, a Pillow image or a file's path); words, with their tags
        as ``label``; or a text alone for a task that generates text. The example is on the disk when this returns, and
        is trained on from the next round on. May be called from any thread, also before :meth:`start`. A label has to
        be one of the task's: with any other the device declines every offer, and its log says which example is at
        fault.
        Raises ``DataFormatError`` for an example of another kind than those that are there, ``StorageError`` from the
        disk, ``ConfigurationError`` for an unknown task.

        >>> agent.learn("awful film", "negative")
        >>> tagger.learn(["the", "bad", "film"], ["positive", "negative", "positive"])
        >>> writer.learn("the good film")
        """
        example = given if label is None else (given, label)
        self._supervisor.tasks.chosen(task).examples.learn(example)

    def stop(self) -> None:
        """End within seconds. An agent that was never started releases its files.

        Updates that are not acknowledged yet are sent by the next agent in this ``state_dir``. Called from
        ``on_model``, this returns at once, and the agent ends afterwards. Raises ``DeadlineError`` if the agent has not
        ended after 10 s.
        """
        self._is_used = True
        self._supervisor.stop()
        if self._thread is threading.current_thread():
            return
        if self._thread.ident is None:
            self._supervisor.close()
        if self._thread.is_alive():
            self._thread.join(_STOP_S)
        if self._thread.is_alive():
            raise DeadlineError(f"agent {self.config.device} did not stop within {_STOP_S:.0f} s; its thread goes on")

    def __enter__(self) -> Self:
        self._enter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._enter()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.stop)

    def _enter(self) -> None:
        """Start; an agent that cannot releases its files, as who fails to enter a context never leaves it."""
        with ExitStack() as undo:
            if not self._is_used:
                undo.callback(self.stop)
            self.start()
            undo.pop_all()

    def _tell(self, report: ReleaseReport) -> None:
        try:
            made = None if self._on_model is None else self._on_model(report)
            if asyncio.iscoroutine(made):
                self._run_on_loop(made)
        except Exception:  # noqa: BLE001 - an application's own may raise anything
            _log.exception("on_model raised an exception; the agent continues")

    def _run_on_loop(self, made: Coroutine[Any, Any, object]) -> None:
        """Schedule ``made`` on the application's loop. ``ConfigurationError`` if there is none, or it is closed."""
        if self._loop is None or self._loop.is_closed():
            made.close()
            raise ConfigurationError("on_model made a coroutine, and there is no loop to run it: use `async with`")
        asyncio.run_coroutine_threadsafe(made, self._loop).add_done_callback(_note_failure)

    def _run(self) -> None:
        with ExitStack() as ending:
            ending.push(self._note_end)
            self._supervisor.run(waits_for_broker=True)

    def _note_end(
        self, _: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """Keep the error for :attr:`status` to raise; an unforeseen one goes to the thread's excepthook as well."""
        self._failure, self._trace = error, trace
        return isinstance(error, RaffmError)


def _note_failure(done: Future[object]) -> None:
    if not done.cancelled() and (error := done.exception()) is not None:
        _log.error("on_model raised an exception; the agent continues", exc_info=error)
