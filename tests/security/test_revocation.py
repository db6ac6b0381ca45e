"""S2: a stolen device is revoked: its session ends within five seconds, and it does not come back.

Mosquitto runs with what `coordinator broker config` writes.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import pytest

from coordinator.fleet import cutting
from coordinator.fleet.authority import Authority
from coordinator.fleet.cutting import cut_off
from coordinator.fleet.folder import keep_settings
from coordinator.fleet.revocation import REASON, revoke_device
from coordinator.service import mqtt_transport
from coordinator.store.states import Outcome
from edge_sdk.errors import BrokerUnreachableError
from edge_sdk.protocol.messages import Offer
from edge_sdk.protocol.topics import Channel, Topic
from edge_sdk.transport.address import tls_context, why_refused
from edge_sdk.transport.base import LinkDown, LinkUp, Transport, Will
from edge_sdk.transport.mqtt import MqttTransport
from tests.support.fault_proxy import FaultProxy, Weather
from tests.support.light_model import light_models, light_task
from tests.support.proof import Proof
from tests.support.secured import SecuredFleet, secured_fleet
from tests.support.served import Served
from tests.support.simulator import Fleet, small_update

pytestmark = [pytest.mark.mosquitto, pytest.mark.xdist_group("revocation")]
BAR_S = 5.0


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredFleet]:
    with secured_fleet(tmp_path_factory.mktemp("secured")) as fleet:
        yield fleet


def connected(secured: SecuredFleet, device: str) -> MqttTransport:
    link = secured.link(device, (str(Topic("default", device, Channel.DOWN)),))
    link.connect()
    assert link.receive(5) == LinkUp()
    return link


def why(secured: SecuredFleet, device: str) -> str:
    identity = secured.enrolled(device)
    return why_refused(secured.broker.address, tls_context(identity.authority_file, identity.file))


def test_live_session_is_cut_and_stays_so_while_others_go_on(secured: SecuredFleet, proof: Proof) -> None:
    with closing(connected(secured, "thief")) as thief, closing(connected(secured, "other")) as other:
        assert why(secured, "thief") == ""
        began_s = time.monotonic()
        revoke_device(secured.store, "thief", time.time(), "ann")
        cut_off(secured.store, secured.fleet, "thief")
        assert isinstance(thief.receive(BAR_S), LinkDown)
        took_s = time.monotonic() - began_s
        proof.show("S2", "seconds from revoking a device to the end of its session", took_s, at_most=BAR_S)
        assert thief.receive(3.0) is None, "it tries to come back, and does not"
        assert "its certificate is revoked" in why(secured, "thief")
        with closing(connected(secured, "third")):
            assert other.receive(0.1) is None
        assert why(secured, "other") == ""


def test_session_outlives_a_revocation_without_the_cut(secured: SecuredFleet) -> None:
    """The control: the list alone keeps it out once it is gone, and not before."""
    with closing(connected(secured, "kept")) as kept:
        revoke_device(secured.store, "kept", time.time(), "ann")
        cutting.tell_broker(secured.store, secured.fleet)
        give_up_s = time.monotonic() + BAR_S
        while not why(secured, "kept"):
            assert time.monotonic() < give_up_s
        assert kept.receive(1.0) is None


def test_devices_that_are_revoked_at_once_are_all_out(secured: SecuredFleet) -> None:
    """A list of the same second as the one that the broker has would count for nothing."""
    names = [f"at-once-{number}" for number in range(3)]
    for name in names:
        secured.enrolled(name)
    for name in names:
        revoke_device(secured.store, name, time.time(), "ann")
        cut_off(secured.store, secured.fleet, name)
    assert all("is revoked" in why(secured, name) for name in names)


def test_list_that_is_no_later_than_the_last_is_seen_to_fail(
    secured: SecuredFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the above, and of the look at what the broker does."""
    monkeypatch.setattr(cutting, "_PATIENCE_S", 0.5)
    real = Authority.revocations

    def undated(self: Authority, serials: Any, number: int, _: float, *, after: Any = None) -> Any:
        return real(self, serials, number, after.timestamp() + 3600)

    secured.enrolled("unseen")
    monkeypatch.setattr(Authority, "revocations", undated)
    revoke_device(secured.store, "unseen", time.time(), "ann")
    with pytest.raises(BrokerUnreachableError, match=r"but the broker .* still lets it in: have it read"):
        cut_off(secured.store, secured.fleet, "unseen")
    monkeypatch.undo()
    assert cut_off(secured.store, secured.fleet, "unseen") < BAR_S, "said again, it holds"


def test_broker_that_is_down_is_said_and_reads_the_list_when_it_starts(secured: SecuredFleet) -> None:
    secured.enrolled("late")
    secured.broker.kill()
    try:
        revoke_device(secured.store, "late", time.time(), "ann")
        with pytest.raises(BrokerUnreachableError, match=r"late is revoked, but nobody answers at .*revoked\.pem"):
            cut_off(secured.store, secured.fleet, "late")
    finally:
        secured.broker.restart()
    assert "is revoked" in why(secured, "late")


def test_process_that_has_the_broker_s_old_number_is_left_alone(secured: SecuredFleet) -> None:
    pid_file = secured.fleet.broker_dir / "mosquitto.pid"
    known = pid_file.read_text()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as innocent:
        try:
            for text in (str(innocent.pid), "no number", str(2**22 - 1)):
                pid_file.write_text(text)
                cutting.tell_broker(secured.store, secured.fleet)
            assert innocent.poll() is None
        finally:
            pid_file.write_text(known)
            innocent.communicate(b"\n")
        assert innocent.returncode == 0, "SIGHUP would have ended it"


def test_operator_s_own_command_has_the_broker_read_the_list(secured: SecuredFleet) -> None:
    secured.enrolled("commanded")
    told = keep_settings(secured.fleet, reload=f"kill -HUP {secured.broker.process_id}")
    (secured.fleet.broker_dir / "mosquitto.pid").rename(secured.folder / "hidden.pid")
    try:
        revoke_device(secured.store, "commanded", time.time(), "ann")
        assert cut_off(secured.store, told, "commanded") < BAR_S
        for command in ("false", "no-such-command", "'unbalanced"):
            with pytest.raises(BrokerUnreachableError, match="the broker's reload command"):
                cut_off(secured.store, keep_settings(secured.fleet, reload=command), "commanded")
    finally:
        (secured.folder / "hidden.pid").rename(secured.fleet.broker_dir / "mosquitto.pid")
        keep_settings(secured.fleet, reload=None)


def test_connection_kept_in_reserve_hears_and_says_nothing_that_counts(secured: SecuredFleet) -> None:
    """It has shown its certificate before that was revoked, and logs in afterwards; the broker knows no better."""
    identity = secured.enrolled("reserve")
    context = tls_context(identity.authority_file, identity.file)
    where = (secured.broker.address.host, secured.broker.address.port)
    with socket.create_connection(where) as plain, context.wrap_socket(plain, server_hostname="127.0.0.1") as link:
        time.sleep(0.3)  # until the broker has looked at the certificate
        revoke_device(secured.store, "reserve", time.time(), "ann")
        cut_off(secured.store, secured.fleet, "reserve")
        link.sendall(bytes.fromhex("100d00044d5154540402003c000161"))
        assert link.recv(4) == b"\x20\x02\x00\x00"
        assert cut_off(secured.store, secured.fleet, "reserve") < BAR_S, "and revoking it again ends that too"
        link.settimeout(BAR_S)
        assert link.recv(1) == b""


# -- in the middle of a round


def test_upload_that_is_under_way_ends_and_counts_for_nothing(secured: SecuredFleet, proof: Proof) -> None:
    names = ("a", "b", "uploader")
    with light_models(), FaultProxy(proof.seed) as proxy:
        gate = proxy.gate("uploader", secured.broker.address)

        def link(name: str, filters: Sequence[str], will: Will) -> Transport:
            return secured.link(name, filters, will, address=gate if name == "uploader" else None)

        def work(device: str, offer: Offer, weights: bytes) -> bytes:
            if device == "uploader":
                proxy.change(Weather(bytes_per_s=20_000.0), device)
            return small_update(device, offer, weights)

        folder = secured.folder / "round"
        folder.mkdir()
        task = light_task(folder, rounds=1, min_devices=3, quorum=2, round_deadline_s=120.0)
        config = secured.config(exit_when_done=True)
        with Served(config, task, mqtt_transport(config)) as served, Fleet(names, link, work=work):
            served.wait_until(lambda: under_way(served, "uploader"))
            revoke_device(secured.store, "uploader", time.time(), "ann")
            took_s = cut_off(secured.store, secured.fleet, "uploader")
            proxy.change(Weather(), "uploader")
            served.wait_for_end()
            accepted = {update.device for update in served.accepted}
            offer = served.read(lambda tx: tx.offers.get("task", 1, "uploader"))
    kept = len(accepted - {"a", "b"})
    proof.show("S2", "updates in the next model of a device that was revoked while it uploaded", kept, at_most=0)
    assert accepted == {"a", "b"}
    assert offer is not None
    assert (offer.outcome, offer.detail) == (Outcome.FAILED, REASON)
    proof.show("S2", "seconds until such an upload is cut", took_s, at_most=BAR_S)


def under_way(served: Served, device: str) -> bool:
    """Whether some of an update has come, and not all."""
    transfers = [it for it in served.service._exchange._transfers.values() if device in it.peers]
    return any(0 < len([*it.partial.missing()]) < 5 for it in transfers if it.partial is not None)
