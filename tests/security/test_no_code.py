"""S6: nothing that comes over the wire is ever run: no pickle, no code, in no part of a round."""

from __future__ import annotations

import ast
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import coordinator
import edge_sdk
from coordinator.store.states import AssignmentStatus, Phase
from edge_sdk.protocol.messages import ReleaseReport, UpdateReady
from edge_sdk.protocol.topics import coordinator_filters
from edge_sdk.transport.memory import MemoryHub, MemoryTransport
from tests.security import attacks
from tests.support.broker import Broker
from tests.support.light_model import light_models, light_task
from tests.support.logistic_graph import examples
from tests.support.lone_device import LoneDevice
from tests.support.served import Served, quick
from tests.support.simulator import Fleet
from tests.support.traps import TrapError, armed, armed_apart

_ATTEMPTS = {
    "pickle.loads": "pickle.loads(pickle.dumps(1))",
    "pickle.load": "pickle.load(io.BytesIO(pickle.dumps(1)))",
    "pickle.Unpickler": "pickle.Unpickler(io.BytesIO())",
    "marshal.loads": "marshal.loads(marshal.dumps(1))",
    "yaml.load": "__import__('yaml').load('a: 1', None)",
}
_TORCH = {"torch.load": "__import__('torch').load('x')"}
_TRY = """
import io, marshal, pickle, sys
for attempt in sys.argv[1:]:
    try:
        eval(attempt)
    except RuntimeError as error:
        print(f"{type(error).__name__}: {error}")
"""
RUNS_CODE = {"eval", "exec", "compile", "__import__", "execfile"}
READS_CODE = {"pickle", "_pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "code", "codeop"}
LETS_CODE = {"allow_pickle", "trust_remote_code"}
KNOWN = {"coordinator/demo/motion.py": ["pickle"]}
"""The demo's, of a package of data that it installs itself, by an unpickler that calls nothing."""


@pytest.mark.parametrize("attempts", [_ATTEMPTS, pytest.param(_TORCH, marks=pytest.mark.long)])
def test_traps_bite(tmp_path: Path, attempts: dict[str, str]) -> None:
    """The control: had a process of a round called any of these, it would have ended."""
    environment = os.environ | armed_apart(tmp_path / "traps")
    command = [sys.executable, "-c", _TRY, *attempts.values()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.splitlines() == [f"TrapError: {name} is called" for name in attempts]


def test_trap_bites_here_and_lets_go() -> None:
    with armed(), pytest.raises(TrapError, match=r"pickle\.loads is called"):
        pickle.loads(pickle.dumps(1))  # noqa: S301 - that is what is tried
    assert pickle.loads(pickle.dumps(1)) == 1  # noqa: S301


def test_device_trains_and_gets_its_model_without_running_what_it_was_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its training process too."""
    for name, value in armed_apart(tmp_path / "traps").items():
        monkeypatch.setenv(name, value)
    with armed(), LoneDevice(tmp_path, examples(30, seed=1)) as device:
        device.run_until(lambda: device.heard(ReleaseReport))
    assert device.heard(UpdateReady)
    (report,) = device.heard(ReleaseReport)
    assert isinstance(report, ReleaseReport)
    assert report.healthy, report


def test_coordinator_takes_updates_and_releases_without_running_what_it_was_sent(tmp_path: Path) -> None:
    hub, names = MemoryHub(), ("a", "b", "c")
    (tmp_path / "state").mkdir()
    task, link = light_task(tmp_path, release=True), MemoryTransport(hub, coordinator_filters("default"))
    with light_models(), armed(), Served(quick(tmp_path / "state"), task, link) as served:
        with Fleet(names, lambda _, filters, will: MemoryTransport(hub, filters, will=will)):
            served.wait_for_end()
        assert [known.phase for known in served.decided] == [Phase.CLOSED] * 2
        releases = served.read(lambda tx: tx.assignments.of_task(task.name))
        assert {known.status for known in releases} == {AssignmentStatus.HEALTHY}


@pytest.mark.long
def test_whole_fleet_of_processes_runs_nothing_that_it_was_sent(
    embedded_broker: Broker, tmp_path: Path, small_model: Path, template_cache: dict[str, str]
) -> None:
    """With torch, transformers and compiled graphs on the coordinator's side."""
    from tests.support.small_fleet import SmallFleet

    environment = template_cache | armed_apart(tmp_path / "traps")
    with SmallFleet(tmp_path, small_model, str(embedded_broker.address), environment) as fleet:
        fleet.create_task("news", "--rounds", "1", "--min-devices", "2", "--max-steps", "4")
        fleet.serve()
        for name in ("a", "b"):
            fleet.agent(name, 400)
        fleet.finish()
        assert [known.phase for known in fleet.read(lambda tx: tx.rounds.all("news"))] == [Phase.CLOSED]
        releases = fleet.read(lambda tx: tx.assignments.of_task("news"))
        assert {known.status for known in releases} == {AssignmentStatus.HEALTHY}, fleet.story()


@pytest.mark.parametrize("number", range(len(attacks.PICKLES)))
def test_pickle_of_the_corpus_would_run_if_it_were_read(number: int) -> None:
    """The control of whatever is fed these: what it calls is called."""
    made = pickle.loads(attacks.PICKLES[number])  # noqa: S301
    assert isinstance(made["weight"], attacks.Executed)


def ways_to_run(source: str) -> Iterator[str]:
    """The names in a module of what runs code, reads code, or lets a library do so."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(func=ast.Name(id=name)) if name in RUNS_CODE:
                yield name
            case ast.Import(names=names):
                yield from (each.name for each in names if each.name.partition(".")[0] in READS_CODE)
            case ast.ImportFrom(module=str(name)) if name.partition(".")[0] in READS_CODE:
                yield name
            case ast.Attribute(value=ast.Name(id="torch"), attr="load"):
                yield "torch.load"
            case ast.keyword(arg=str(name), value=value) if name in LETS_CODE and ast.unparse(value) != "False":
                yield name


def test_no_module_has_a_way_to_run_what_it_reads() -> None:
    folders = [Path(package.__path__[0]) for package in (edge_sdk, coordinator)]
    modules = {str(module.relative_to(folder.parent)): module for folder in folders for module in folder.rglob("*.py")}
    found = {name: [*ways_to_run(module.read_text(encoding="utf-8"))] for name, module in modules.items()}
    assert len(modules) > 200
    assert {module: ways for module, ways in found.items() if ways} == KNOWN


@pytest.mark.parametrize(
    ("source", "way"),
    [
        ("eval('1')", "eval"),
        ("def f():\n    exec(x)", "exec"),
        ("import pickle as p", "pickle"),
        ("from marshal import loads", "marshal"),
        ("import torch\ntorch.load(f)", "torch.load"),
        ("np.load(f, allow_pickle=True)", "allow_pickle"),
        ("AutoModel.from_pretrained(x, trust_remote_code=flag)", "trust_remote_code"),
    ],
)
def test_a_way_to_run_code_is_found(source: str, way: str) -> None:
    """The control."""
    assert [*ways_to_run(source)] == [way]
    assert not [*ways_to_run("import re\nre.compile('x')\nnp.load(f, allow_pickle=False)\nmodel.eval()")]
