"""A device's key and certificate on its disk, and how they are renewed in time."""

from __future__ import annotations

import stat
import threading
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from edge_sdk.agent.uplink import Uplink
from edge_sdk.config import AgentConfig
from edge_sdk.errors import ConfigurationError, UntrustedError
from edge_sdk.protocol.messages import Refused, Renew, Renewed
from edge_sdk.security.identity import Identity
from edge_sdk.security.renewal import Renewal
from edge_sdk.settings import load_settings
from tests.support.authority import Authority

DAY_S = 86400.0


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def identity(tmp_path: Path, authority: Authority) -> Identity:
    """Of a device ``pi-5`` with a certificate of a day."""
    made = Identity.of(tmp_path)
    request = made.request("pi-5")
    made.authority_file.write_bytes(authority.ca_file.read_bytes())
    made.keep(authority.client(request), "pi-5")
    return made


def certificate(identity: Identity) -> x509.Certificate:
    return x509.load_pem_x509_certificate(identity.file.read_bytes())


def test_key_and_certificate_are_one_file_that_only_its_owner_reads(identity: Identity) -> None:
    key = load_pem_private_key(identity.file.read_bytes(), None)
    assert key.public_key() == certificate(identity).public_key()
    assert stat.S_IMODE(identity.file.stat().st_mode) == 0o600
    assert stat.S_IMODE(identity.folder.stat().st_mode) == 0o700
    assert {file.name for file in identity.folder.iterdir()} == {"identity.pem", "authority.pem"}, "no key is left over"
    begins_s, ends_s = identity.span()
    assert ends_s - begins_s == DAY_S


def test_key_is_on_the_disk_before_anybody_is_asked_and_is_the_same_the_next_time(tmp_path: Path) -> None:
    """The answer may be lost, and the same key gets the same certificate again."""
    first, again = (x509.load_der_x509_csr(Identity.of(tmp_path).request("pi-5")) for _ in range(2))
    assert first.public_key() == again.public_key()
    assert stat.S_IMODE((tmp_path / "identity" / "new.key").stat().st_mode) == 0o600


def test_certificate_for_another_key_name_or_of_another_authority_is_not_kept(
    identity: Identity, authority: Authority, tmp_path: Path
) -> None:
    before = identity.file.read_bytes()
    request = identity.request("pi-5")
    elsewhere = Identity.of(tmp_path / "elsewhere")
    (tmp_path / "other").mkdir()
    wrong = {
        "not for the key": authority.client(elsewhere.request("pi-5")),
        "not for the key that pi-5": authority.client(identity.request("pi-6")),
        "none of the fleet's authority": Authority(tmp_path / "other", "another").client(request),
        "none of the fleet": b"\x30\x03abc",
    }
    for words, made in wrong.items():
        with pytest.raises(UntrustedError, match=words):
            identity.keep(made, "pi-5")
    assert identity.file.read_bytes() == before
    identity.keep(authority.client(request), "pi-5")


def test_file_of_another_program_is_refused_in_words(identity: Identity) -> None:
    identity.file.write_bytes(b"-----BEGIN PRIVATE KEY-----\n")
    with pytest.raises(ConfigurationError, match="does not begin as `edge-agent enroll` writes it"):
        identity.span()


# -- renewal


def renewal(identity: Identity) -> tuple[Renewal, list[Renew]]:
    asked = list[Renew]()
    return Renewal(identity, "pi-5", asked.append), asked


def test_nothing_is_asked_for_until_a_third_of_the_time_is_left(identity: Identity) -> None:
    made, asked = renewal(identity)
    begins_s, ends_s = identity.span()
    for share in (0.0, 0.5, 0.66):
        made.tick(begins_s + share * DAY_S, steady_s=0.0)
    assert not asked
    made.tick(ends_s - DAY_S / 3, steady_s=0.0)
    assert len(asked) == 1
    assert x509.load_der_x509_certificate(asked[0].certificate) == certificate(identity)
    assert x509.load_der_x509_csr(asked[0].request).public_key() != certificate(identity).public_key(), "a new key"


def test_it_is_asked_for_again_and_not_too_often_until_it_comes(identity: Identity, authority: Authority) -> None:
    made, asked = renewal(identity)
    late_s = identity.span()[1] - 60
    for second in range(7201):
        made.tick(late_s, steady_s=float(second))
    assert len(asked) == 5, "DAY_S / 50 apart"
    keys = [x509.load_der_x509_csr(one.request).public_key() for one in asked]
    assert all(key == keys[0] for key in keys)
    assert not made.takes(Refused(reason="not yet"))
    assert made.takes(Renewed(certificate=authority.client(asked[-1].request, 2 * DAY_S)))
    assert identity.span()[1] > late_s + DAY_S
    made.tick(late_s, steady_s=1e6)
    assert len(asked) == 5


def test_answer_that_does_not_hold_leaves_the_old_one(identity: Identity, authority: Authority, tmp_path: Path) -> None:
    made, asked = renewal(identity)
    before = identity.file.read_bytes()
    made.tick(identity.span()[1] - 60, steady_s=0.0)
    assert made.takes(Renewed(certificate=authority.client(Identity.of(tmp_path / "x").request("pi-5"))))
    assert identity.file.read_bytes() == before
    assert made.takes(Renewed(certificate=authority.client(asked[0].request)))
    assert identity.file.read_bytes() != before


def test_answer_that_comes_twice_is_taken_once_and_is_no_error(
    identity: Identity, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    made, asked = renewal(identity)
    made.tick(identity.span()[1] - 60, steady_s=0.0)
    answer = Renewed(certificate=authority.client(asked[0].request))
    assert made.takes(answer)
    assert made.takes(answer)
    assert "not accepted" not in caplog.text
    assert {file.name for file in identity.folder.iterdir()} == {"identity.pem", "authority.pem"}


@pytest.mark.parametrize(
    ("name", "why"), [("authority.pem", "cannot be read or written"), ("identity.pem", "has no certificate")]
)
def test_file_that_is_damaged_while_the_agent_runs_costs_the_renewal_alone(
    identity: Identity, authority: Authority, caplog: pytest.LogCaptureFixture, name: str, why: str
) -> None:
    made, asked = renewal(identity)
    late_s = identity.span()[1] - 60
    made.tick(late_s, steady_s=0.0)
    damaged = identity.folder / name
    if name == "authority.pem":
        damaged.unlink()
    else:
        damaged.write_bytes(damaged.read_bytes().partition(b"-----BEGIN CERTIFICATE-----")[0])
        made.tick(late_s, steady_s=1e6)
        assert f"the certificate cannot be renewed: {damaged} {why}" in caplog.text
    assert made.takes(Renewed(certificate=authority.client(asked[0].request)))
    assert f"the new certificate is not accepted: {damaged} {why}" in caplog.text


def test_whoever_reads_the_file_meanwhile_finds_one_pair(identity: Identity, authority: Authority) -> None:
    """Key and certificate change together, whatever else goes on."""
    ending, torn = threading.Event(), list[str]()

    def read() -> None:
        while not ending.is_set():
            whole = identity.file.read_bytes()
            found = x509.load_pem_x509_certificate(whole)
            if load_pem_private_key(whole, None).public_key() != found.public_key():
                torn.append("torn")

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(30):
        identity.keep(authority.client(identity.request("pi-5")), "pi-5")
    ending.set()
    reader.join()
    assert not torn


def test_certificate_from_elsewhere_is_its_owner_s_business(identity: Identity, tmp_path: Path) -> None:
    file = tmp_path / "own.pem"
    file.write_bytes(identity.file.read_bytes())
    own, enrolled = (
        AgentConfig(device="pi-5", broker="mqtts://broker", state_dir=tmp_path, certificate_file=named)
        for named in (file, identity.file)
    )
    assert Uplink(own, None, lambda _: None)._renewal is None  # type: ignore[arg-type]
    assert Uplink(enrolled, None, lambda _: None)._renewal is not None  # type: ignore[arg-type]


def test_certificate_from_enrolling_is_renewed_also_where_the_state_folder_is_named_from_the_current_one(
    identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {"device": "pi-5", "broker": "mqtts://broker", "certificate_file": identity.file.name}
    identity.settings_file.write_text("".join(f'{name} = "{value}"\n' for name, value in told.items()))
    state_dir = identity.folder.parent
    monkeypatch.chdir(state_dir.parent)
    options = {"state_dir": Path(state_dir.name), "data": Path("texts.csv")}
    config = load_settings(None, {}, options).config
    assert Uplink(config, None, lambda _: None)._renewal is not None  # type: ignore[arg-type]


def test_clock_that_is_wrong_costs_no_more_than_a_question(identity: Identity) -> None:
    made, asked = renewal(identity)
    made.tick(time.time() - 10 * 365 * DAY_S, steady_s=0.0)
    made.tick(time.time() + 10 * 365 * DAY_S, steady_s=0.0)
    assert len(asked) == 1
