"""The main job with real processes and real brokers: train parts, aggregate, release, answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from coordinator.store.states import AssignmentStatus, Outcome, Phase
from edge_sdk.elastic.runtimes import Runtime
from edge_sdk.elastic.submodel import TrainablePart
from edge_sdk.protocol.messages import EncodingKind, Failure, Verdict
from tests.support.broker import Broker
from tests.support.postgres import postgres_server
from tests.support.small_fleet import COSTS, LABELS, SmallFleet, forbidding, need_mib

EAGER = ("--learning-rate", "4e-4", "--epochs", "6", "--max-steps", "18")
FORBIDDEN_ON_A_DEVICE = ("torch", "transformers", "onnx", "optimum", "sqlalchemy", "coordinator")


@pytest.mark.parametrize("broker", ["iotcore", pytest.param("mosquitto", marks=pytest.mark.long)], indirect=True)
def test_unequal_devices_train_one_model_and_run_a_larger_one(
    broker: Broker, tmp_path: Path, small_model: Path, template_cache: dict[str, str]
) -> None:
    limits = {"large": 400, "middle": need_mib(2), "small": need_mib(1)}
    device_only = forbidding(tmp_path / "forbidding", FORBIDDEN_ON_A_DEVICE)
    with SmallFleet(tmp_path, small_model, str(broker.address), template_cache) as fleet:
        fleet.create_task("news", "--rounds", "2", "--min-devices", "3", *EAGER)
        fleet.serve()
        for name, limit_mib in limits.items():
            fleet.agent(name, limit_mib, environment=device_only)
        fleet.finish()
        rounds = fleet.read(lambda tx: tx.rounds.all("news"))
        assert [known.phase for known in rounds] == [Phase.CLOSED] * 2, fleet.story()
        for known in rounds:
            offers = {o.device: o for o in fleet.read(lambda tx, n=known.number: tx.offers.of_round("news", n))}
            assert {o.outcome for o in offers.values()} == {Outcome.UPDATED}, fleet.story()
            assert {name: max(offers[name].submodel.heads) for name in limits} == {"large": 4, "middle": 2, "small": 1}
        releases = fleet.read(lambda tx: tx.assignments.of_task("news"))
        assert {known.status for known in releases} == {AssignmentStatus.HEALTHY}, fleet.story()
        assert {known.device: max(known.submodel.heads) for known in releases}["small"] > 1
        accuracy = {e.width: e.accuracy for e in fleet.read(lambda tx: tx.evaluations.of_round("news", 2))}
        assert accuracy["full"] > 1 / len(LABELS), accuracy
        _check_libraries(fleet)
        _ask_offline(fleet)
        _list_as_json(fleet, limits)


def _check_libraries(fleet: SmallFleet) -> None:
    """What the kernel says is mapped: the agents trained and answer, on onnxruntime and without torch."""
    for name in ("large", "middle", "small"):
        maps = Path(f"/proc/{fleet.processes[name].pid}/maps").read_text()
        assert "onnxruntime" in maps
        assert "torch" not in maps


@pytest.mark.parametrize(("module", "needed"), [("edge_sdk.training.worker", "msgspec"), ("edge_sdk.cli", "typer")])
def test_forbidden_import_ends_a_device_process(tmp_path: Path, module: str, needed: str) -> None:
    """The control: had an agent or its training process imported what is forbidden, it would not have trained."""
    environment = os.environ | forbidding(tmp_path, [needed])
    done = subprocess.run(
        [sys.executable, "-m", module, "x"], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode != 0
    assert f"forbidden import of {needed}" in done.stderr


def _ask_offline(fleet: SmallFleet) -> None:
    fleet.kill("small")
    state = ("--device", "small", "--state-dir", str(fleet.folder / "small"))
    answer = fleet.command("edge_sdk.cli", "predict", "alpha zeta eta", *state, "--json")
    assert json.loads(answer.stdout)["label"] in LABELS


def _list_as_json(fleet: SmallFleet, limits: dict[str, int]) -> None:
    state = ("--state-dir", str(fleet.state), "--json")
    devices = json.loads(fleet.command("coordinator.cli", "device", "list", *state).stdout)
    assert {row["device"]: row["training_memory_mib"] for row in devices} == limits
    rounds = json.loads(fleet.command("coordinator.cli", "round", "list", *state).stdout)
    assert [(row["round"], row["updates"]) for row in rounds] == [(1, 3), (2, 3)]


@pytest.mark.parametrize("broker", ["mosquitto"], indirect=True)
def test_device_that_runs_out_of_memory_gets_a_smaller_submodel(
    broker: Broker, tmp_path: Path, small_model: Path, template_cache: dict[str, str]
) -> None:
    """The planner is made to believe too much of a device once; its report mends that by itself."""
    with SmallFleet(tmp_path, small_model, str(broker.address), template_cache) as fleet:
        fleet.create_task("news", "--rounds", "3", "--min-devices", "2", "--encoding", "int8")
        _believe(fleet, "small", 1.02 * need_mib(4) / need_mib(1))
        fleet.serve()
        fleet.agent("large", 400)
        fleet.agent("small", need_mib(1))
        fleet.finish()
        offers = fleet.read(lambda tx: tx.offers.of_device("news", "small"))
        assert max(offers[0].submodel.heads) == 4
        assert offers[0].failure is Failure.OUT_OF_MEMORY, fleet.story()
        assert max(offers[-1].submodel.heads) < 4
        assert offers[-1].outcome is Outcome.UPDATED, fleet.story()
        updates = fleet.read(lambda tx: tx.updates.accepted("news", 3))
        assert {update.report.encoding.kind for update in updates} == {EncodingKind.INT8}


def _believe(fleet: SmallFleet, device: str, factor: float) -> None:
    from coordinator.store.opening import open_store

    store = open_store(fleet.state)
    with store.transaction() as tx:
        tx.devices.hello(device, "unknown", 0, 0.0)
        tx.devices.offline(device, 0)
        tx.devices.set_memory_factor(device, factor)
    store.close()


@pytest.mark.long
def test_updates_come_as_the_task_says_and_make_up_for_what_the_last_ones_left_out(fleet: SmallFleet) -> None:
    limits = {"large": 400, "small": need_mib(1)}
    fleet.create_task("news", "--rounds", "2", "--min-devices", "2", "--no-release", "--encoding", "topk:0.1", *EAGER)
    fleet.serve()
    for name, limit_mib in limits.items():
        fleet.agent(name, limit_mib)
    fleet.finish()
    for number in (1, 2):
        updates = fleet.read(lambda tx, n=number: tx.updates.accepted("news", n))
        assert {update.device for update in updates} == {*limits}, fleet.story()
        for update in updates:
            offer = fleet.read(lambda tx, u=update: tx.offers.get("news", u.round, u.device))
            values = COSTS.model.trainable_count(offer.submodel, TrainablePart.NO_EMBEDDINGS)
            assert 6 * 0.1 * values <= update.size_bytes == update.report.uploaded_bytes <= 0.62 * values + 10_000
    for name in limits:
        kept = sorted(path.name for path in (fleet.folder / name / "residuals").iterdir())
        assert kept == ["news.1.safetensors", "news.2.safetensors"], fleet.story()


@pytest.mark.long
def test_blobs_come_from_a_web_server_and_over_mqtt_once_it_is_gone(fleet: SmallFleet) -> None:
    served = list[str]()

    class Web(SimpleHTTPRequestHandler):
        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:  # noqa: ARG002
            served.append(self.path.lstrip("/"))

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Web, directory=str(fleet.state / "blobs"))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        fleet.create_task("news", "--rounds", "1", "--min-devices", "1", *EAGER)
        fleet.serve("--blob-url", f"http://127.0.0.1:{server.server_port}")
        fleet.agent("reader", need_mib(1))
        fleet.wait_until(lambda: fleet.read(lambda tx: tx.updates.accepted("news", 1)), "a first update")
        server.shutdown()
    fleet.finish()
    assert fleet.log_of("reader").count("does not serve the blob") == 1, fleet.story()
    assert len(served) == len({*served}) == 4, "what the offer names, each once"
    (release,) = fleet.read(lambda tx: tx.assignments.of_task("news"))
    assert release.status is AssignmentStatus.HEALTHY, fleet.story()
    assert {entry.digest for entry in release.manifest} - {*served}, "the release came over MQTT"


@pytest.mark.long
def test_round_is_kept_by_postgresql(fleet: SmallFleet) -> None:
    with postgres_server() as address:
        fleet.create_task("news", "--rounds", "1", "--min-devices", "1", *EAGER)
        fleet.command("coordinator.cli", "store", "move", address, "--state-dir", str(fleet.state))
        (fleet.state / "coordinator.sqlite").unlink()
        fleet.serve()
        fleet.agent("pi", need_mib(1))
        fleet.finish()
        (known,) = fleet.read(lambda tx: tx.rounds.all("news"))
        assert known.phase is Phase.CLOSED, fleet.story()
        (release,) = fleet.read(lambda tx: tx.assignments.of_task("news"))
        assert release.status is AssignmentStatus.HEALTHY, fleet.story()
    assert not (fleet.state / "coordinator.sqlite").exists()


@pytest.mark.long
def test_only_able_task_leaves_small_devices_out(fleet: SmallFleet) -> None:
    fleet.create_task("able", "--rounds", "1", "--min-devices", "2", "--only-able", "--no-release")
    fleet.serve()
    fleet.agent("large", 400)
    fleet.agent("small", need_mib(1))
    fleet.finish()
    offers = fleet.read(lambda tx: tx.offers.of_round("able", 1))
    assert [offer.device for offer in offers] == ["large"]
    assert fleet.read(lambda tx: tx.updates.accepted("able", 1))[0].verdict is Verdict.ACCEPTED


@pytest.mark.long
def test_device_on_torch_and_device_on_onnx_train_in_one_round(fleet: SmallFleet) -> None:
    """Torch takes half a gigabyte before it has begun, so the same limit holds a smaller submodel."""
    fleet.create_task("news", "--rounds", "2", "--min-devices", "2", *EAGER)
    fleet.serve()
    fleet.agent("light", need_mib(4))
    fleet.agent("heavy", 900, runtime=Runtime.TORCH)
    fleet.agent("tight", need_mib(4), runtime=Runtime.TORCH)
    fleet.finish()
    for number in (1, 2):
        offers = {offer.device: offer for offer in fleet.read(lambda tx, n=number: tx.offers.of_round("news", n))}
        assert offers.keys() == {"light", "heavy"}, "what does not fit torch is not offered"
        assert {offer.outcome for offer in offers.values()} == {Outcome.UPDATED}, fleet.story()
        assert offers["heavy"].predicted_memory_bytes > 2 * offers["light"].predicted_memory_bytes
    assert "libtorch" not in Path(f"/proc/{fleet.processes['heavy'].pid}/maps").read_text(), "only its training process"
    accepted = fleet.read(lambda tx: tx.updates.accepted("news", 2))
    assert {update.device for update in accepted} == {"light", "heavy"}
