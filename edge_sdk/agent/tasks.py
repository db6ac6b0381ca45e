"""The tasks that a device takes part in: for each one its examples, and the model that it runs.

<state>/examples.jsonl, slots/ …              for a device with a single task, whatever its name
<state>/tasks/<task>/examples.jsonl, slots/   for each task of a device with several
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edge_sdk.config import AgentConfig
from edge_sdk.data.owned import Owned
from edge_sdk.data.rows import are_columns
from edge_sdk.data.store import ExampleStore
from edge_sdk.disk import disk_errors
from edge_sdk.elastic.runtimes import COSTS, Runtime
from edge_sdk.errors import ConfigurationError, DataFormatError, did_you_mean
from edge_sdk.inference.serving import Serving
from edge_sdk.protocol.messages import MAX_TASKS, Ready, Snapshot
from edge_sdk.protocol.topics import check_name


@dataclass(frozen=True, slots=True)
class OwnTask:
    """What a device has for one task."""

    examples: ExampleStore
    serving: Serving


def folder_of(state_dir: Path, task: str | None) -> Path:
    """Where a task's examples and models lie; ``None`` stands for the only task of a device."""
    return state_dir if task is None else state_dir / "tasks" / check_name(task, "task")


def folder_with(state_dir: Path, task: str | None) -> Path:
    """Where a task's models lie, judged by which folders exist; creates nothing. The rule is :meth:`OwnTasks.of`'s."""
    own = folder_of(state_dir, task)
    return own if own.is_dir() else state_dir


class OwnTasks:
    """The tasks of one device.

    ``owned`` are the examples of its only task, whatever that is called, or a plain ``dict`` of examples by task name.
    Other mappings, such as a dataset with several splits, do not name tasks.

    Raises ``ConfigurationError`` for a bad name and for no or too many tasks, ``DataFormatError`` for examples that
    cannot be used.
    """

    def __init__(self, owned: Owned, config: AgentConfig) -> None:
        by_name = owned if type(owned) is dict else {None: owned}
        if are_columns(by_name):
            raise DataFormatError(
                f"examples is a dict of the columns {', '.join(map(str, by_name))}, and a dict names tasks; give a "
                "DataFrame, a Dataset (Dataset.from_dict takes such a dict), or something that yields (text, label)"
            )
        if not 1 <= len(by_name) <= MAX_TASKS:
            raise ConfigurationError(
                f"examples has {len(by_name)} tasks; give 1 to {MAX_TASKS}, or examples that are not in a dict"
            )
        for name in by_name:
            if not isinstance(name, str | None):
                raise ConfigurationError(
                    f"examples is a dict with a key of type {type(name).__name__}, and a dict names tasks; use texts"
                )
        self._tasks = {
            name: _own_task(part, folder_of(config.state_dir, name), config) for name, part in by_name.items()
        }

    def of(self, name: str) -> OwnTask | None:
        """This device's part in the coordinator's task ``name``; ``None`` if it takes no part in it."""
        return self._tasks.get(name) or self._tasks.get(None)

    def own_name(self, name: str) -> str | None:
        """The name that the coordinator's task ``name`` has here; ``None`` where the only task answers to any name."""
        return name if name in self._tasks else None

    def chosen(self, name: str | None) -> OwnTask:
        """The task that an application names; ``None`` stands for the only one. Raises ``ConfigurationError``."""
        if name is None and len(self._tasks) == 1:
            return next(iter(self._tasks.values()))
        found = self.of(name) if name is not None else None
        if found is None:
            known = [task for task in self._tasks if task is not None]
            raise ConfigurationError(f"this agent has no task {name!r}; {did_you_mean(str(name), known)}")
        return found

    def ready(self, snapshot: Snapshot) -> Ready | None:
        """A request for work in the tasks that have examples; ``None`` if none has."""
        found = {name: task.examples.holding() for name, task in self._tasks.items()}
        held = {name: holding for name, holding in found.items() if holding is not None}
        names = tuple(name for name in held if name is not None)
        return Ready(snapshot=snapshot, tasks=names, holdings=tuple(held.values())) if held else None

    def share_bytes(self, inference_bytes: int) -> int:
        """The memory that each task's model may take, since the models of all tasks stay loaded in ``inference_bytes``.

        The cost model counts interpreter and libraries with every model; the process has them once.
        """
        base_bytes = min(inference_bytes, COSTS[Runtime.ONNX].inference_bytes)
        return base_bytes + (inference_bytes - base_bytes) // len(self._tasks)

    @property
    def release(self) -> int:
        """The newest release that runs; 0 before the first."""
        return max(task.serving.release for task in self._tasks.values())

    def serving(self) -> tuple[Serving, ...]:
        """The models of all tasks."""
        return tuple(task.serving for task in self._tasks.values())

    def start(self) -> None:
        """Begin to read from the iterators among the examples."""
        for task in self._tasks.values():
            task.examples.start()

    def stop(self) -> None:
        """Stop reading from iterators, and leave no model on trial."""
        for task in self._tasks.values():
            task.examples.stop()
            task.serving.interrupt_trial()


def _own_task(owned: Owned, folder: Path, config: AgentConfig) -> OwnTask:
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    examples = ExampleStore(owned, folder, share=config.held_out_share, seed=config.seed, image_size=config.image_size)
    return OwnTask(examples, Serving(folder / "slots", threads=1, providers=config.providers))
