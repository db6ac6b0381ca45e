"""A device on its way into a fleet, over real TLS: whom it trusts, what it sends to whom, and what it keeps."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from fastapi import FastAPI

from coordinator.api.app import create_app
from coordinator.api.limiting import Limits
from coordinator.delivery.roots import ensure_root
from coordinator.fleet.authority import Authority, new_key
from coordinator.fleet.enrolment import make_enrolment
from coordinator.fleet.folder import Fleet
from coordinator.store.database import Store
from edge_sdk.errors import ConfigurationError, CoordinatorUnreachableError, MalformedMessageError, UntrustedError
from edge_sdk.security.enrolment import enroll
from edge_sdk.security.identity import Identity
from edge_sdk.security.trust import load_root
from edge_sdk.settings import enrolled_values, load_settings
from tests.support.broker import free_port
from tests.support.new_store import new_store
from tests.support.secured import new_fleet

PATIENCE_S = 20.0


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def fleet(state: Path) -> Fleet:
    return new_fleet(state)


@pytest.fixture(scope="module")
def store(state: Path) -> Iterator[Store]:
    opened = new_store(state)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def api(state: Path, store: Store, fleet: Fleet) -> Iterator[str]:
    """The API's address, with a certificate of the fleet's authority."""
    with serving(create_app(store, state), fleet) as address:
        yield address


@contextmanager
def serving(app: FastAPI, fleet: Fleet) -> Iterator[str]:
    port, certificate = free_port(), fleet.make_api_certificate()
    config = uvicorn.Config(app, port=port, ssl_certfile=certificate, log_config=None)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait(lambda: server.started)
    yield f"https://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(PATIENCE_S)


def wait(holds: Callable[[], bool]) -> None:
    give_up_s = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < give_up_s
        time.sleep(0.01)


def token(store: Store, device: str | None = None) -> str:
    return make_enrolment(store, device=device, group=None, hours=1, now_s=time.time(), who="ann")


def files(folder: Path) -> set[str]:
    return {file.name for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("by", ["fingerprint", "file"])
def test_enrolled_device_needs_no_more_than_its_examples(
    api: str, store: Store, fleet: Fleet, tmp_path: Path, by: str
) -> None:
    device = f"by-{by}"
    ca_file, fingerprint = (None, fleet.authority.fingerprint) if by == "fingerprint" else (fleet.authority_file, None)
    enroll(api, token(store), device, tmp_path, ca_file=ca_file, fingerprint=fingerprint)
    found = load_settings(None, {}, {"state_dir": tmp_path, "data": tmp_path / "x.csv"}).config
    assert (found.device, found.broker, found.fleet) == (device, fleet.settings.broker, "default")
    identity = Identity.of(tmp_path)
    assert (found.certificate_file, found.ca_file) == (identity.file, identity.authority_file)
    fleet.authority.check(x509.load_pem_x509_certificate(identity.file.read_bytes()), time.time())
    assert load_root(found.root or Path()) == load_root(fleet.state_dir / "root.json")
    assert files(tmp_path) == {"identity.pem", "authority.pem", "agent.toml", "root.json"}


def test_answer_that_was_lost_is_had_again(api: str, store: Store, fleet: Fleet, tmp_path: Path) -> None:
    """The device has said it all, and hears nothing: it has kept its key, and asks again."""
    secret = token(store)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Identity, "keep", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            enroll(api, secret, "forgetful", tmp_path, ca_file=fleet.authority_file, fingerprint=None)
    assert enrolled_values(tmp_path) == {}
    enroll(api, secret, "forgetful", tmp_path, ca_file=fleet.authority_file, fingerprint=None)
    with store.reading() as tx:
        assert len(tx.certificates.of_device("forgetful")) == 1


def test_nobody_is_trusted_blindly(api: str, store: Store, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="the CA to trust is not given: use --ca-file"):
        enroll(api, token(store), "pi-5", tmp_path, ca_file=None, fingerprint=None)
    for fingerprint in ("sha256:ab", "", "md5:" + "a" * 64, "sha256:" + "g" * 64):
        with pytest.raises(ConfigurationError, match="is not sha256: and 64 hexadecimal digits"):
            enroll(api, token(store), "pi-5", tmp_path, ca_file=None, fingerprint=fingerprint)
    assert not files(tmp_path)


def test_plaintext_to_another_machine_is_refused_before_anything_is_sent(fleet: Fleet, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="use https://"):
        enroll("http://198.51.100.7:8080", "t", "pi-5", tmp_path, ca_file=fleet.authority_file, fingerprint=None)


def test_refusal_is_told_in_the_coordinator_s_words(api: str, store: Store, fleet: Fleet, tmp_path: Path) -> None:
    with pytest.raises(UntrustedError, match="/enroll refuses: the token is for another device than 'pi-5'"):
        enroll(api, token(store, "pi-6"), "pi-5", tmp_path, ca_file=fleet.authority_file, fingerprint=None)
    assert enrolled_values(tmp_path) == {}


def test_device_that_asks_too_often_is_told_to_wait_and_not_that_it_is_refused(
    state: Path, store: Store, fleet: Fleet, tmp_path: Path
) -> None:
    secret = token(store, "pi-6")
    with serving(create_app(store, state, Limits(failures_per_minute=2)), fleet) as api:

        def ask() -> None:
            enroll(api, secret, "pi-5", tmp_path, ca_file=fleet.authority_file, fingerprint=None)

        for _ in range(2):
            with pytest.raises(UntrustedError, match="for another device"):
                ask()
        with pytest.raises(CoordinatorUnreachableError, match="cannot answer now: too many wrong tokens: try again in"):
            ask()


def test_coordinator_that_is_not_there_is_said(fleet: Fleet, tmp_path: Path) -> None:
    address = f"https://127.0.0.1:{free_port()}"
    with pytest.raises(CoordinatorUnreachableError, match=f"no coordinator can be reached at {address}"):
        enroll(address, "t", "pi-5", tmp_path, ca_file=fleet.authority_file, fingerprint=None)


def test_enrolling_that_fails_leaves_an_earlier_identity_whole(
    api: str, store: Store, fleet: Fleet, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    enroll(api, token(store), "settled", state, ca_file=fleet.authority_file, fingerprint=None)
    before = {file: file.read_bytes() for file in state.rglob("*") if file.is_file()}
    other = new_fleet(tmp_path / "other")
    with pytest.raises(CoordinatorUnreachableError):
        enroll(
            f"https://127.0.0.1:{free_port()}", "t", "settled", state, ca_file=other.authority_file, fingerprint=None
        )
    assert {file: file.read_bytes() for file in before} == before


def answer_for(fleet: Fleet, identity: Identity, **changes: str) -> dict[str, tuple[int, bytes]]:
    """What the fleet would say to a device that is about to ask, but for ``changes``."""
    key = x509.load_der_x509_csr(identity.request("pi-5")).public_key()
    made = fleet.authority.device(key, "pi-5", "default", days=1, now_s=time.time())  # type: ignore[arg-type]
    return {"/enroll": (200, told(made.public_bytes(Encoding.PEM).decode(), **changes))}


def test_words_of_the_fleet_stay_words(store: Store, fleet: Fleet, tmp_path: Path) -> None:
    """Nothing that it says can add a setting, or steer the terminal that shows where the broker is."""
    root = ensure_root(store, fleet.state_dir, time.time()).read_text()
    for sly in ('mqtts://b"\nuser = "x', "mqtts://b\x1b[2J", "mqtts://b\x7f"):
        answer = answer_for(fleet, Identity.of(tmp_path), broker=sly, root=root)
        with impostor(tmp_path, fleet.authority, answer) as server, pytest.raises(MalformedMessageError) as caught:
            enroll(server.address, "t", "pi-5", tmp_path, ca_file=fleet.authority_file, fingerprint=None)
        assert str(caught.value).isprintable()
        assert enrolled_values(tmp_path) == {}


def test_address_of_the_broker_is_kept_as_it_is_read(store: Store, fleet: Fleet, tmp_path: Path) -> None:
    root = ensure_root(store, fleet.state_dir, time.time()).read_text()
    answer = answer_for(fleet, Identity.of(tmp_path), broker="mqtts://\nbroker.example", root=root)
    with impostor(tmp_path, fleet.authority, answer) as server:
        told = enroll(server.address, "t", "pi-5", tmp_path, ca_file=fleet.authority_file, fingerprint=None)
    assert told.broker == enrolled_values(tmp_path)["broker"] == "mqtts://broker.example:8883"


def test_fleet_without_a_root_of_trust_is_not_joined(fleet: Fleet, tmp_path: Path) -> None:
    answer, words = answer_for(fleet, Identity.of(tmp_path), root="{}"), "holds no root of trust"
    with impostor(tmp_path, fleet.authority, answer) as server, pytest.raises(ConfigurationError, match=words):
        enroll(server.address, "t", "pi-5", tmp_path, ca_file=fleet.authority_file, fingerprint=None)
    assert enrolled_values(tmp_path) == {}


# -- somebody else's server


class Impostor(ThreadingHTTPServer):
    """Answers what it likes, and remembers what it was told."""

    def __init__(self, certificate: Path, answers: dict[str, tuple[int, bytes]]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers, self.heard = answers, list[str]()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        self.socket = context.wrap_socket(self.socket, server_side=True)
        self.address = f"https://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: object) -> None: ...


class _Handler(BaseHTTPRequestHandler):
    server: Impostor

    def do_GET(self) -> None:
        self.server.heard.append(f"{self.path} {self.headers}")
        code, body = self.server.answers.get(self.path, (404, b"{}"))
        self.send_response(code)
        if code == 302:
            self.send_header("Location", body.decode())
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET  # noqa: N815 - http.server's name

    def log_message(self, *_: object) -> None: ...


@contextmanager
def impostor(folder: Path, authority: Authority, answers: dict[str, tuple[int, bytes]]) -> Iterator[Impostor]:
    """A server with a certificate of ``authority`` for this machine."""
    made = authority.server(["127.0.0.1"], time.time())
    (folder / "impostor.pem").write_bytes(made.key_pem + made.certificate_pem)
    server = Impostor(folder / "impostor.pem", answers)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(PATIENCE_S)


@pytest.mark.parametrize("shows", ["its own authority", "the fleet's authority", "nothing"])
def test_token_is_told_to_nobody_but_the_fleet(store: Store, fleet: Fleet, tmp_path: Path, shows: str) -> None:
    """One in the middle has a certificate of another authority of the same name."""
    other, secret = Authority.create("default", new_key(), time.time()), token(store)
    shown = {
        "its own authority": other.certificate_pem,
        "the fleet's authority": fleet.authority.certificate_pem,
        "nothing": b"?",
    }
    with impostor(tmp_path, other, {"/enroll/authority": (200, shown[shows])}) as server:
        with pytest.raises(UntrustedError, match=r"has another CA|is not trusted|sent no CA certificate"):
            enroll(
                server.address, secret, "pi-5", tmp_path / "x", ca_file=None, fingerprint=fleet.authority.fingerprint
            )
        with pytest.raises(UntrustedError, match="is not trusted"):
            enroll(server.address, secret, "pi-5", tmp_path / "x", ca_file=fleet.authority_file, fingerprint=None)
        assert not [words for words in server.heard if secret in words or "POST" in words]
    assert enrolled_values(tmp_path / "x") == {}


def test_token_would_be_told_to_whoever_is_trusted(store: Store, tmp_path: Path) -> None:
    """The control."""
    other, secret = Authority.create("default", new_key(), time.time()), token(store)
    (tmp_path / "other.pem").write_bytes(other.certificate_pem)
    with impostor(tmp_path, other, {"/enroll": (200, b"{}")}) as server:
        with pytest.raises(MalformedMessageError):
            enroll(server.address, secret, "pi-5", tmp_path / "x", ca_file=tmp_path / "other.pem", fingerprint=None)
        assert [words for words in server.heard if secret in words]


def told(certificate: str, **changes: str) -> bytes:
    known = {"certificate": certificate, "broker": "mqtts://b", "fleet": "default", "root": "{}"}
    return json.dumps(known | changes).encode()


def test_answer_that_does_not_hold_is_not_kept(fleet: Fleet, tmp_path: Path) -> None:
    """Even of a server of the fleet's."""
    strange = fleet.authority.device(new_key().public_key(), "pi-5", "default", days=1, now_s=time.time())
    foreign = strange.public_bytes(Encoding.PEM).decode()
    answers = {
        "another key's": (200, told(foreign)),
        "no certificate": (200, told("?")),
        "a broker that is none": (200, told(foreign, broker='x"\nca_file = "/etc/passwd')),
        "a broker with settings in it": (200, told("?", broker='mqtts://b"\nca_file = "x')),
        "a fleet that is none": (200, told(foreign, fleet='x"\n')),
        "endless": (200, b" " * 100_000),
        "no answer": (200, b""),
        "moved": (302, b"https://127.0.0.1:9/enroll"),
        "failed": (503, b'{"error": "the disk is full"}'),
        "gone": (418, b"teapot"),
    }
    for name, answer in answers.items():
        with impostor(tmp_path, fleet.authority, {"/enroll": answer}) as server:
            with pytest.raises((UntrustedError, MalformedMessageError, CoordinatorUnreachableError)) as caught:
                enroll(server.address, "t", "pi-5", tmp_path / "x", ca_file=fleet.authority_file, fingerprint=None)
            assert "\n" not in str(caught.value), name
    assert files(tmp_path / "x") == {"authority.pem", "new.key"}
