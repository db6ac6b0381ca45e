"""A coordinator and agents as real processes on a small real model, for tests from end to end.

The model is a random BERT whose widths differ by megabytes, so that the planner has a choice; the label of a text
follows from its words, so that training has something to learn.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from transformers import BertConfig, BertForSequenceClassification
from transformers.utils import logging

from coordinator.config import DEFAULT_RECIPE
from coordinator.demo.inputs import write_examples
from coordinator.planning.budget import COST_MODEL_ERROR
from coordinator.planning.nesting import Nesting
from coordinator.planning.planner import TaskCosts
from coordinator.store.database import Store, Transaction
from coordinator.store.opening import open_store
from edge_sdk.data import TextExamples
from edge_sdk.elastic.cost import CostModel
from edge_sdk.elastic.runtimes import Runtime
from edge_sdk.elastic.submodel import Architecture, Submodel, TrainablePart, uniform
from tests.support.bert import shapes
from tests.support.tiny_models import WORDS, tiny_tokenizer

MIB = 1 << 20
LABELS = ("alpha", "beta", "gamma")
ARCHITECTURE = Architecture("bert", 4, 4, 32, 4096, 128, 40, 66, len(LABELS))
SHAPES = shapes(ARCHITECTURE) | {"classifier.weight": (len(LABELS), 128), "classifier.bias": (len(LABELS),)}
COSTS = TaskCosts(CostModel.of(ARCHITECTURE, SHAPES), TrainablePart.NO_EMBEDDINGS, DEFAULT_RECIPE, nesting=Nesting())
_PATIENCE_S = 120.0
_T = TypeVar("_T")


def save_small_model(folder: Path) -> Path:
    """A random BERT of ``ARCHITECTURE`` as Hugging Face writes it."""
    config = BertConfig(
        vocab_size=ARCHITECTURE.vocabulary,
        hidden_size=ARCHITECTURE.hidden,
        num_hidden_layers=ARCHITECTURE.layers,
        num_attention_heads=ARCHITECTURE.heads,
        intermediate_size=ARCHITECTURE.ffn,
        max_position_embeddings=ARCHITECTURE.positions,
        pad_token_id=1,
        num_labels=len(LABELS),
    )
    torch.manual_seed(0)
    logging.disable_progress_bar()
    BertForSequenceClassification(config).save_pretrained(folder)
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def some_examples(count: int, seed: int) -> TextExamples:
    """Texts of six words; the first is the label, the rest is noise."""
    rng = np.random.default_rng(seed)
    labels = [LABELS[i % len(LABELS)] for i in range(count)]
    noise = [" ".join(rng.choice(WORDS[len(LABELS) :], 5)) for _ in labels]
    texts = tuple(f"{label} {words}" for label, words in zip(labels, noise, strict=True))
    return TextExamples(texts, tuple(labels))


def need_mib(heads: int) -> int:
    """The training limit, in MiB, for which the planner just chooses ``heads`` heads."""
    submodel: Submodel = uniform(ARCHITECTURE, heads)
    return int(COSTS.training_bytes(submodel) / (1 - COST_MODEL_ERROR) / MIB) + 1


def inference_mib(heads: int) -> int:
    """The inference limit, in MiB, that ``heads`` heads just fit into."""
    return int(COSTS.inference_bytes(uniform(ARCHITECTURE, heads)) / MIB) + 1


def write_profile(path: Path, training_memory_mib: int, inference_memory_mib: int = 256) -> Path:
    """A device profile with these limits."""
    path.write_text(
        f'name = "{path.stem}"\ntitle = "test"\nkind = "board"\ncpu = "test"\ncores = 2\nmemory_total_mib = 4096\n'
        f"[limits]\ntraining_memory_mib = {training_memory_mib}\n"
        f"inference_memory_mib = {inference_memory_mib}\nthreads = 1\n"
        '[[sources]]\nfields = ["limits"]\ndocument = "test"\nread = "2026-11-21"\n',
        encoding="utf-8",
    )
    return path


class SmallFleet:
    """Processes around one broker in one folder; leaving the context ends all of them by process id."""

    def __init__(self, folder: Path, model: Path, broker: str, environment: dict[str, str]) -> None:
        self.folder, self.model, self.broker = folder, model, broker
        self.environment = os.environ | environment
        self.state = folder / "coordinator"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        write_examples(folder / "calibration.csv", some_examples(32, seed=90))
        write_examples(folder / "test.csv", some_examples(60, seed=91))

    def __enter__(self) -> SmallFleet:  # noqa: PYI034 - Self needs Python 3.11
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self.processes):
            self.kill(name, signal.SIGTERM)

    # -- commands

    def command(self, module: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            capture_output=True,
            text=True,
            env=self.environment,
            timeout=_PATIENCE_S,
            check=False,
        )
        assert not check or done.returncode == 0, done.stderr
        return done

    def create_task(self, name: str, *options: str) -> None:
        """`coordinator task create`."""
        data = ("--calibration", str(self.folder / "calibration.csv"), "--test", str(self.folder / "test.csv"))
        model = ("--model", str(self.model), "--state-dir", str(self.state))
        self.command("coordinator.cli", "task", "create", name, *model, *data, *options)

    def serve(self, *options: str, stays: bool = False) -> None:
        """Start `coordinator serve`, until its tasks have ended, or until it is killed."""
        own = ("--state-dir", str(self.state), "--broker", self.broker, "--threads", "1")
        self._start(
            "coordinator", "coordinator.cli", "serve", *own, *(() if stays else ("--exit-when-done",)), *options
        )

    def agent(
        self,
        name: str,
        training_memory_mib: int,
        *,
        inference_memory_mib: int = 256,
        data: Path | None = None,
        runtime: Runtime = Runtime.ONNX,
        environment: dict[str, str] | None = None,
        through: Sequence[str] = (),
        options: Sequence[str] = (),
    ) -> None:
        """Start `edge-agent run` on ``data`` or forty texts of its own, in so much memory.

        ``through`` is typed before it: a command that becomes the agent; ``options`` are typed after it.
        """
        if data is None:
            data = self.folder / f"{name}.csv"
            write_examples(data, some_examples(40, seed=sum(name.encode())))
        profile = write_profile(self.folder / f"{name}-board.toml", training_memory_mib, inference_memory_mib)
        self._start(
            name,
            "edge_sdk.cli",
            "run",
            *("--device", name, "--broker", self.broker, "--data", str(data), "--profile", str(profile)),
            *("--state-dir", str(self.folder / name), "--root", str(self.state / "root.json")),
            *("--runtime", runtime.value),
            *options,
            environment=environment,
            through=through,
        )

    def _start(
        self,
        name: str,
        module: str,
        *arguments: str,
        environment: dict[str, str] | None = None,
        through: Sequence[str] = (),
    ) -> None:
        self.start(name, *through, sys.executable, "-m", module, *arguments, environment=environment)

    def start(self, name: str, *command: str, environment: dict[str, str] | None = None) -> None:
        """Start a process, whose log is ``name``'s."""
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=self.environment | (environment or {}),
            )

    # -- watching

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """End a process and wait for its end."""
        process = self.processes.pop(name)
        if process.poll() is None:
            process.send_signal(number)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def log_of(self, name: str) -> str:
        """All that a process said."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def finish(self) -> None:
        """Wait until the coordinator has ended well."""
        process = self.processes["coordinator"]
        try:
            code = process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            code = None
        assert code == 0, self.story()

    def wait_until(self, holds: Callable[[], _T], what: str, *, pause_s: float = 0.05) -> _T:
        """Poll until ``holds()`` is true; fails with every log where it never is."""
        deadline_s = time.monotonic() + _PATIENCE_S
        while not (found := holds()):
            assert time.monotonic() < deadline_s, f"{what} never happened\n{self.story()}"
            time.sleep(pause_s)
        return found

    def story(self) -> str:
        """The end of every log."""
        logs: Iterable[Path] = sorted(self.folder.glob("*.log"))
        return "\n".join(f"== {log.name}\n{log.read_text(errors='replace')[-2000:]}" for log in logs)

    def read(self, question: Callable[[Transaction], _T]) -> _T:
        """Ask the store."""
        store: Store = open_store(self.state)
        try:
            with store.reading() as tx:
                return question(tx)
        finally:
            store.close()


def forbidding(folder: Path, modules: Sequence[str]) -> dict[str, str]:
    """An environment in which importing any of ``modules`` fails, in a process and in every process that it starts."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(
        "import sys\n"
        "class Forbid:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {tuple(modules)!r}:\n"
        "            raise RuntimeError('forbidden import of ' + name)\n"
        "sys.meta_path.insert(0, Forbid())\n",
        encoding="utf-8",
    )
    return {"PYTHONPATH": os.pathsep.join((str(folder), os.environ.get("PYTHONPATH", "")))}
