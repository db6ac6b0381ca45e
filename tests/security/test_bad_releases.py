"""Releases that are bad, or that a thief has signed, sent to a simulated fleet by a real coordinator."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.config import CoordinatorConfig
from coordinator.delivery.approving import approve, known_release, signatures_by
from coordinator.delivery.keys import own_key
from coordinator.delivery.rollout import Command
from coordinator.delivery.roots import install_root
from coordinator.delivery.starting import command_rollout, start_rollout
from coordinator.store.opening import open_store
from coordinator.store.plan import Plan
from coordinator.store.records import AssignmentRecord
from coordinator.store.states import AssignmentStatus as Status
from coordinator.store.states import RolloutStatus, TaskStatus
from edge_sdk.protocol.messages import BlobEntry, Part
from edge_sdk.protocol.releases import Trial, encoded
from edge_sdk.protocol.signing import Role
from edge_sdk.protocol.topics import coordinator_filters
from edge_sdk.transport.blob_folder import BlobFolder
from edge_sdk.transport.memory import MemoryHub, MemoryTransport
from tests.support.light_model import light_task
from tests.support.logistic_graph import LABELS, examples, inference_model, parameters, tokenizer_json
from tests.support.proof import Proof
from tests.support.release_fleet import ReleaseDevice
from tests.support.served import Served, quick
from tests.support.signed import TASK, Signers, export, write_root_file
from tests.support.simulator import Fleet, Pace

SHARES = ("1%", "10%", "50%", "100%")
OLD, BAD = 1, 2
HELD_OUT = examples(20, seed=5)
Stored = Callable[[], list[AssignmentRecord]]


class Sky:
    """A coordinator that serves, and devices that all run release 1; ``crashes`` and ``silent`` are on release 2."""

    def __init__(self, folder: Path, count: int, *, crashes: bool = False, silent: bool = False) -> None:
        self.state = folder / "coordinator"
        self.signers = Signers(round=[own_key(self.state, Role.ROUND)])
        kind = type("Own", (ReleaseDevice,), {})
        kind.folder, kind.root = folder, write_root_file(folder / "given.json", self.signers.root_envelope())
        kind.held_out = HELD_OUT
        kind.crashes_on, kind.silent_on = (frozenset({BAD} if it else ()) for it in (crashes, silent))
        self._hub, self._folder = MemoryHub(), folder
        names = [f"d{number}" for number in range(count)]
        for name in names:
            (folder / name).mkdir()
        self.fleet = Fleet(
            names,
            lambda _, filters, will: MemoryTransport(self._hub, filters, will=will),
            kind=kind,
            pace=Pace(ready_s=max(0.3, count / 100), wait_s=max(0.3, count / 100)),
        )
        with closing(open_store(self.state)) as store:
            install_root(store, self.state, folder / "given.json", time.time(), "test")
        self.served = self._served()

    def _served(self) -> Served:
        task = light_task(self._folder, TASK)
        served = Served(
            quick(self.state, exit_when_done=False), task, MemoryTransport(self._hub, coordinator_filters("default"))
        )
        with served.store.transaction() as tx:
            tx.tasks.set_status(TASK, TaskStatus.DONE)
        return served

    def __enter__(self) -> Sky:  # noqa: PYI034 - Self needs Python 3.11
        self._stack = ExitStack()
        self._stack.enter_context(self.served)
        self._stack.enter_context(self.fleet)
        self.wait(
            lambda: len(self.read(lambda tx: [it for it in tx.devices.all() if it.snapshot])) == len(self.devices)
        )
        self.roll_out(self.release(OLD), Plan())
        self.wait(lambda: {device.serving.release for device in self.devices} == {OLD})
        self.wait(lambda: self.status is RolloutStatus.DONE and not self.standing(Status.SENT))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def devices(self) -> list[ReleaseDevice]:
        return [device for device in self.fleet.devices.values() if isinstance(device, ReleaseDevice)]

    def restart(self) -> None:
        """The coordinator ends, and another one goes on with what is in its store."""
        self.served.service.stop()
        self.served._thread.join(30)
        self.served = self._served()
        self._stack.enter_context(self.served)

    def release(self, number: int, seed: int = 1, signers: list[Ed25519PrivateKey] | None = None) -> int:
        """Recorded and approved; of other weights by ``seed``."""
        blobs = BlobFolder(CoordinatorConfig(state_dir=self.state, broker="").blob_dir)
        data = (inference_model(parameters(seed)).SerializeToString(), tokenizer_json())
        entries = tuple(
            BlobEntry(part=part, digest=blobs.put_bytes(content), size_bytes=len(content))
            for part, content in zip((Part.INFERENCE_MODEL, Part.TOKENIZER), data, strict=True)
        )
        manifest = self.signers.manifest(number, labels=LABELS, exports=(export(manifest=entries),))
        with self.served.store.transaction() as tx:
            release = tx.releases.add(TASK, 0, time.time())
            assert release == number
            tx.releases.describe(release, encoded(manifest))
            record = known_release(tx, release)
            if signers is None:
                approve(tx, release, signatures_by(record, self.signers.release), time.time(), "test")
            else:
                tx.releases.sign(release, signatures_by(record, signers))
        return release

    def roll_out(self, release: int, plan: Plan) -> None:
        with self.served.store.transaction() as tx:
            self.rollout = start_rollout(tx, release, plan, time.time(), "test").rollout

    def read(self, question: Callable[..., object]) -> object:
        return self.served.read(question)

    @property
    def status(self) -> RolloutStatus:
        return self.served.read(lambda tx: tx.rollouts.get(self.rollout)).status

    def assigned(self) -> tuple[AssignmentRecord, ...]:
        return self.served.read(lambda tx: tx.assignments.of_rollout(self.rollout))

    def standing(self, *statuses: Status) -> set[str]:
        return {known.device for known in self.assigned() if known.status in statuses}

    def wait(self, holds: Callable[[], object]) -> float:
        return self.served.wait_until(holds, 60.0)


def accuracy(seed: int) -> float:
    """Of the model of this seed on what the devices hold out."""
    import tempfile

    from edge_sdk.inference.engine import Engine

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model")
        file.write_bytes(inference_model(parameters(seed)).SerializeToString())
        return Engine(file, tokenizer_json(), LABELS, 16).measure(HELD_OUT).accuracy


FAULTS = {
    "inaccurate": ({}, Trial(min_accuracy=1.0), "is below 1.000"),
    "crashes": ({"crashes": True}, Trial(), "ended while it tried"),
    "silent": ({"silent": True}, Trial(), "silent for"),
    "slow": ({}, Trial(max_latency_ms=0.001), "an example takes"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_release_reaches_the_first_stage_alone_and_all_come_back(tmp_path: Path, fault: str, proof: Proof) -> None:
    devices, trial, reason = FAULTS[fault]
    count, interval_s = proof.count(short=8, full=200), 3.0
    with Sky(tmp_path, count, **devices) as sky:
        plan = Plan(stages=SHARES, health_interval_s=interval_s, trial=trial, success_share=1.0)
        sky.roll_out(sky.release(BAD, seed=2), plan)
        took_s = sky.wait(
            lambda: (
                sky.status is RolloutStatus.HALTED
                and not sky.standing(Status.SENT, Status.TRYING, Status.FAILED, Status.HEALTHY)
            )
        )
        affected = {device.name for device in sky.devices if BAD in device.tried}
        assert affected <= sky.standing(Status.ROLLED_BACK)
        assert {device.serving.release for device in sky.devices} == {OLD}
        reasons = [known.reason for known in sky.assigned() if known.device in affected]
        assert any(reason in each for each in reasons), "whoever came back without it was called back"
    first = math.ceil(0.01 * count)
    what = f"of {count} devices"
    proof.show(
        "S5",
        f"{what}, those beyond the first stage that a bad release ({fault}) reaches",
        len(affected) - first,
        at_most=0,
    )
    proof.show("S5", f"health intervals until all {what} are back ({fault})", took_s / interval_s, at_most=2)


def test_good_release_reaches_everybody(tmp_path: Path) -> None:
    """The control: the same stages, and a trial that the model passes."""
    with Sky(tmp_path, 8) as sky:
        trial = Trial(seconds=0.1, min_accuracy=accuracy(3), max_accuracy_loss=1.0)
        sky.roll_out(sky.release(BAD, seed=3), Plan(stages=SHARES, trial=trial, success_share=1.0))
        sky.wait(lambda: sky.status is RolloutStatus.DONE)
        assert {device.serving.release for device in sky.devices} == {BAD}
        with sky.served.store.transaction() as tx:
            command_rollout(tx, sky.rollout, Command.ROLLBACK, time.time(), "test")
        sky.wait(lambda: sky.status is RolloutStatus.ROLLED_BACK)
        assert {device.serving.release for device in sky.devices} == {OLD}


def test_rollout_goes_on_after_the_coordinator_was_restarted(tmp_path: Path) -> None:
    with Sky(tmp_path, 6) as sky:
        plan = Plan(stages=("50%", "100%"), trial=Trial(seconds=1.5), success_share=1.0)
        sky.roll_out(sky.release(BAD, seed=3), plan)
        sky.wait(lambda: sky.standing(Status.TRYING))
        sky.restart()
        sky.wait(lambda: sky.status is RolloutStatus.DONE)
        assert all(device.tried == [OLD, BAD] for device in sky.devices), "nothing was tried twice"


def test_thief_of_the_coordinator_s_key_ships_nothing_and_rotation_restores_service(
    tmp_path: Path, proof: Proof
) -> None:
    """The drill: whoever has the state folder signs a release with the online key, and forces it out."""
    count = proof.count(short=5, full=200)
    with Sky(tmp_path, count) as sky:
        thief = [own_key(sky.state, Role.ROUND)]
        stolen = sky.release(BAD, seed=2, signers=thief)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("coordinator.delivery.starting.is_approved", lambda *_: True)
            sky.roll_out(stolen, Plan(health_interval_s=2.0))
        sky.wait(lambda: all(device.refusals for device in sky.devices))
        taken = sum(BAD in device.tried for device in sky.devices)
        proof.show("S4", f"of {count} devices, those that took what the online key signed", taken, at_most=0)
        assert all("0 of the 1 release keys" in device.refusals[0] for device in sky.devices)
        sky.wait(lambda: sky.status is RolloutStatus.HALTED)
        _rotate(sky, tmp_path)
        sky.roll_out(sky.release(3, seed=3), Plan())
        sky.wait(lambda: sky.status is RolloutStatus.DONE and not sky.standing(Status.SENT, Status.TRYING))
        without = sum((device.serving.release, device.trust.root.version) != (3, 2) for device in sky.devices)
        proof.show("S4", f"of {count} devices, those without the next release after rotation", without, at_most=0)


def _rotate(sky: Sky, folder: Path) -> None:
    """New release and round keys; the coordinator begins anew with its own."""
    (sky.state / "round.key").unlink()
    fresh = own_key(sky.state, Role.ROUND)
    sky.signers = Signers(root=sky.signers.root, round=[fresh], version=2)
    install_root(
        sky.served.store,
        sky.state,
        write_root_file(folder / "second.json", sky.signers.root_envelope()),
        time.time(),
        "test",
    )
    sky.restart()
