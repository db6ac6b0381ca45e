"""The doctor: it says what is so and what to do, on a whole machine and on one where things are missing."""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edge_sdk.cli import app
from edge_sdk.device import checks
from edge_sdk.device.checks import CHECKS
from edge_sdk.device.doctor import Check, Patient, require_fit
from edge_sdk.device.system import System
from edge_sdk.diagnosis import machine
from edge_sdk.diagnosis.findings import Finding, Mark, as_json, examine, failed, show
from edge_sdk.diagnosis.reaching import reach
from edge_sdk.errors import StorageError, UnfitDeviceError
from edge_sdk.protocol.messages import GRAIN_BYTES, MAX_PAYLOAD_BYTES
from tests.support.authority import Authority
from tests.support.boards import JETSON, MIB, RASPBERRY_PI, group_v2, modem, write_tree
from tests.support.broker import Broker, mosquitto_broker
from tests.support.certificate import self_signed


def found(check: Check, patient: Patient) -> list[Finding]:
    return examine(patient, [("it", check)])


@pytest.fixture
def patient(tmp_path: Path) -> Patient:
    return Patient(System(tmp_path), tmp_path / "state")


def test_this_machine_is_fit_and_every_check_says_something(tmp_path: Path) -> None:
    """The tests run here, so an agent can."""
    findings = examine(Patient(System(), tmp_path / "state"), CHECKS)
    assert not failed(findings), findings
    names = {finding.check for finding in findings}
    assert names >= {name for name, _ in CHECKS} - {"sensors", "settings", "broker"} | {
        "temperature",
        "battery",
        "link",
    }
    assert all(finding.found for finding in findings)
    require_fit(findings)
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("error", [ImportError("No module named 'psutil'", name="psutil"), OSError(5, "I/O error")])
def test_check_that_cannot_be_made_is_a_finding(patient: Patient, error: Exception) -> None:
    def check(_: Patient) -> Iterator[Finding]:
        yield Finding("it", Mark.OK, "so far")
        raise error

    so_far, failed = found(check, patient)
    assert so_far.mark is Mark.OK
    assert failed.mark is Mark.FAILURE
    assert str(error) in failed.found
    assert failed.advice == ("pip install psutil" if isinstance(error, ImportError) else "")


def test_named_error_of_a_check_is_a_finding(patient: Patient) -> None:
    def check(_: Patient) -> Iterator[Finding]:
        raise StorageError("the disk is odd")
        yield

    assert found(check, patient) == [Finding("it", Mark.FAILURE, "cannot be checked: the disk is odd")]


def test_unfit_device_is_named_by_its_failures() -> None:
    findings = [Finding("disk", Mark.FAILURE, "x"), Finding("clock", Mark.WARNING, "y"), Finding("a", Mark.OK, "z")]
    with pytest.raises(UnfitDeviceError, match=r"cannot run here, see above: disk$") as raised:
        require_fit(findings)
    assert raised.value.exit_code == 9
    assert as_json(findings)["can_run"] is False


# -- the owner's settings


def write_settings(folder: Path, *lines: str) -> Path:
    file = folder / "agent.toml"
    file.write_text("\n".join(('device = "pi-5"', 'broker = "mqtt://127.0.0.1:9"', *lines)), encoding="utf-8")
    return file


def findings_of(file: Path) -> dict[str, dict[str, str]]:
    """What the command finds of a file of settings, by check."""
    done = CliRunner().invoke(app, ["doctor", "--config", str(file), "--json"])
    assert isinstance(done.exception, UnfitDeviceError), done.exception  # nobody listens at the broker's port
    return {finding["check"]: finding for finding in json.loads(done.stdout)["findings"]}


@pytest.mark.parametrize(
    ("lines", "check", "says"),
    [
        ((), "settings", "data is not given: use --data, RAFFM_EDGE_DATA, or data = … in a file for --config"),
        (('data = "texts.csv"', "cache_bytes = 0"), "settings", "cache_bytes 0 must be positive"),
        (('data = "texts.csv"',), "examples", "texts.csv does not exist"),
    ],
)
def test_settings_that_lack_something_or_name_no_examples_are_failures(
    tmp_path: Path, lines: tuple[str, ...], check: str, says: str
) -> None:
    finding = findings_of(write_settings(tmp_path, *lines))[check]
    assert finding["mark"] == "failure"
    assert says in finding["found"]


def test_settings_that_are_complete_are_said_to_be(tmp_path: Path) -> None:
    (tmp_path / "texts.csv").write_text("text,label\n", encoding="utf-8")
    file = write_settings(tmp_path, 'data = "texts.csv"')
    findings = findings_of(file)
    assert findings["settings"]["found"] == f"an agent can start with {file}"
    assert findings["settings"]["mark"] == "ok"
    assert "examples" not in findings
    assert found(checks.settings, Patient(System(tmp_path))) == []


def test_profile_shows_what_the_owners_settings_allow(tmp_path: Path) -> None:
    lines = ('profile = "raspberry-pi-5-8gb"', "threads = 1", "[policy]", 'quiet_hours = ["00:00-24:00"]')
    words = ("profile", "--config", str(write_settings(tmp_path, *lines)), "--state-dir", str(tmp_path), "--json")
    shown = json.loads(CliRunner().invoke(app, words, catch_exceptions=False).stdout)
    assert (shown["profile"], shown["threads"]) == ("raspberry-pi-5-8gb", 1)
    assert "within the quiet hours 00:00-24:00" in shown["may_train"]


def test_doctor_examines_what_run_would_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_settings(tmp_path, 'profile = "raspberry-pi-5-8gb"')
    seen = list[Patient]()
    monkeypatch.setattr(checks, "CHECKS", (("it", lambda patient: seen.append(patient) or iter(())),))
    for words in ((), ("--broker", "mqtt://127.0.0.1:8"), ("--config", str(file), "--profile", "jetson-tx2")):
        CliRunner().invoke(app, ["doctor", *words], env={"RAFFM_EDGE_CONFIG": str(file)}, catch_exceptions=False)
    monkeypatch.setenv("RAFFM_EDGE_BROKER", "mqtt://127.0.0.1:7")
    CliRunner().invoke(app, ["doctor"], catch_exceptions=False)
    assert [(it.config, it.broker, it.profile) for it in seen] == [
        (file, "mqtt://127.0.0.1:9", "raspberry-pi-5-8gb"),
        (file, "mqtt://127.0.0.1:8", "raspberry-pi-5-8gb"),
        (file, "mqtt://127.0.0.1:9", "jetson-tx2"),
        (None, "mqtt://127.0.0.1:7", None),
    ]


# -- checks, on machines that lack something


def test_old_python_fails(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.sys, "version_info", (3, 9, 2))
    assert found(checks.python_version, patient)[0].mark is Mark.FAILURE


def test_32_bit_system_fails_in_words(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks.sys, "maxsize", 2**31 - 1)
    monkeypatch.setattr(checks.platform, "machine", lambda: "armv7l")
    (finding,) = found(checks.word_size, patient)
    assert finding.mark is Mark.FAILURE
    assert "armv7l, 32-bit" in finding.found
    assert "no wheels for 32-bit ARM" in finding.advice


def test_missing_package_is_named_with_what_to_type(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_PACKAGES", ("psutil", "no_such_package.inner"))
    (finding,) = found(checks.packages, patient)
    assert finding.mark is Mark.FAILURE
    assert finding.found == "cannot be imported: no_such_package.inner"
    assert finding.advice.endswith(" no_such_package")


def test_onnxruntime_that_cannot_be_imported_fails(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_sdk.device.accelerator.onnxruntime_providers", lambda: None)
    (broken,) = found(checks.onnxruntime, patient)
    assert (broken.mark, broken.found) == (Mark.FAILURE, "installed, but cannot be imported")
    monkeypatch.setattr(checks.importlib.util, "find_spec", lambda _: None)
    (missing,) = found(checks.onnxruntime, patient)
    assert (missing.mark, missing.advice) == (Mark.FAILURE, "pip install onnxruntime")
    assert found(checks.torch, patient) == [Finding("torch", Mark.OK, "not installed, and not needed")]


@pytest.mark.parametrize(("limit_mib", "mark"), [(300, Mark.FAILURE), (400, Mark.WARNING), (1024, Mark.OK)], ids=str)
def test_memory_that_may_train_is_held_against_the_least(patient: Patient, limit_mib: int, mark: Mark) -> None:
    group_v2(patient.system.root, "", limit=str(limit_mib * MIB), used=0)
    (finding,) = found(checks.memory, patient)
    assert finding.mark is mark, finding
    assert f"{limit_mib // 4} MiB may be used" in finding.found
    group = found(checks.control_group, patient)[0]
    assert group.mark is (Mark.OK if limit_mib > 512 else Mark.WARNING)
    assert f"allows {limit_mib:,} MiB" in group.found


def test_throttled_board_is_warned_of(patient: Patient) -> None:
    board = RASPBERRY_PI | {"sys/devices/platform/soc/soc:firmware/get_throttled": "50005"}
    write_tree(patient.system.root, board)
    speed, throttling = found(checks.speed, patient)
    assert "Raspberry Pi 4 Model B" in speed.found
    assert throttling.mark is Mark.WARNING


def test_sensors_of_a_jetson_on_a_modem_are_read(patient: Patient) -> None:
    modem(write_tree(patient.system.root, JETSON), "yes (guessed)")
    temperature, _, link = found(checks.sensors, patient)
    assert temperature == Finding("temperature", Mark.OK, "55 °C")
    assert (link.mark, link.found) == (Mark.WARNING, "metered")
    assert "Jetson" in found(checks.accelerator, patient)[0].found


@pytest.mark.parametrize(
    ("providers", "ending"),
    [
        (("CUDAExecutionProvider", "CPUExecutionProvider"), "onnxruntime uses it"),
        (("CPUExecutionProvider",), "this onnxruntime has no CUDA; the CPU is used"),
        (None, "this onnxruntime has no CUDA; the CPU is used"),
    ],
    ids=["cuda", "cpu", "broken"],
)
def test_gpu_is_said_to_be_used_only_by_an_onnxruntime_with_cuda(
    patient: Patient, monkeypatch: pytest.MonkeyPatch, providers: tuple[str, ...] | None, ending: str
) -> None:
    write_tree(patient.system.root, JETSON)
    monkeypatch.setattr("edge_sdk.device.accelerator.onnxruntime_providers", lambda: providers)
    (finding,) = found(checks.accelerator, patient)
    assert finding.found == f"NVIDIA Jetson Orin Nano Developer Kit; {ending}"


def test_machine_without_sensors_is_warned_of_and_fit(patient: Patient) -> None:
    findings = found(checks.sensors, patient)
    assert findings[0].mark is Mark.WARNING
    assert not failed(findings)


def test_state_folder_below_a_file_fails(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    _, folder = found(checks.disk, Patient(System(), tmp_path / "file" / "state"))
    assert folder.mark is Mark.FAILURE
    assert "cannot be written" in folder.found


def test_disk_with_little_room_fails(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    for free_mib, mark in ((100, Mark.FAILURE), (500, Mark.WARNING), (5000, Mark.OK)):
        monkeypatch.setattr("edge_sdk.device.probe.disk_free_bytes", lambda _, free=free_mib: free * MIB)
        assert found(checks.disk, patient)[0].mark is mark


@pytest.mark.parametrize(("year", "mark"), [(1970, Mark.WARNING), (2027, Mark.OK), (2080, Mark.WARNING)])
def test_clock_that_cannot_be_right_is_warned_of(
    patient: Patient, monkeypatch: pytest.MonkeyPatch, year: int, mark: Mark
) -> None:
    at_s = datetime(year, 6, 1, tzinfo=timezone.utc).timestamp()
    monkeypatch.setattr(machine.time, "time", lambda: at_s)
    (finding,) = found(checks.clock, patient)
    assert finding.mark is mark
    assert str(year) in finding.found


# -- the way to a broker


@contextmanager
def listener(certificate: ssl.SSLContext | None = None, answer: bytes = b"") -> Iterator[int]:
    """Something on a port that is no broker: it takes connections, says ``answer`` and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while server.fileno() >= 0:
                with suppress(OSError):  # the other side hangs up, or the server is closed
                    connection, _ = server.accept()
                    with connection:
                        if certificate is not None:
                            certificate.wrap_socket(connection, server_side=True).close()
                        elif answer:
                            connection.recv(100)
                            connection.sendall(answer)
                            time.sleep(0.05)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
    thread.join(5)


def asked(broker: str, ca_file: Path | None = None) -> Finding:
    *_, last = reach(Patient(System(), broker=broker, ca_file=ca_file))
    return last


@pytest.mark.beyond_base
def test_broker_that_answers_is_fine(embedded_broker: Broker) -> None:
    words = f"{embedded_broker.address} answers: MQTT 5, messages of up to {MAX_PAYLOAD_BYTES} bytes"
    assert asked(str(embedded_broker.address)) == Finding("broker", Mark.OK, words)


@pytest.mark.mosquitto
def test_broker_that_takes_small_packets_only_is_told_of() -> None:
    for limit, mark in ((MAX_PAYLOAD_BYTES // 2, Mark.WARNING), (GRAIN_BYTES, Mark.FAILURE)):
        with mosquitto_broker(lines=[f"max_packet_size {limit}"]) as small:
            finding = asked(str(small.address))
        assert finding.mark is mark
        assert "max_packet_size" in finding.found + finding.advice


@pytest.mark.mosquitto
def test_certificate_that_ends_soon_is_told_of(tmp_path: Path) -> None:
    for days, mark in ((2, Mark.WARNING), (100, Mark.OK)):
        pem = self_signed(tmp_path, days=days)[1]
        with mosquitto_broker(server=(pem, tmp_path / "key.pem")) as broker:
            certificate, mqtt = reach(Patient(System(), broker=str(broker.address), ca_file=pem))
        assert (certificate.check, certificate.mark, mqtt.mark) == ("certificate", mark, Mark.OK), certificate
        assert f"{days - 1} days" in certificate.found


def test_name_that_nobody_knows_is_said() -> None:
    finding = asked("mqtts://nowhere.invalid")
    assert (finding.mark, "the name nowhere.invalid is not known" in finding.found) == (Mark.FAILURE, True), finding


def test_port_where_nothing_listens_is_said() -> None:
    assert "nothing listens at 127.0.0.1:9" in asked("mqtt://127.0.0.1:9").found


def test_plaintext_to_another_machine_is_refused_before_anything_is_sent() -> None:
    assert "plaintext" in asked("mqtt://192.0.2.1").found


def test_address_that_is_none_is_said() -> None:
    assert "is not of the form" in asked("broker.example").found


def test_port_without_tls_is_said() -> None:
    with listener(answer=b"220 mail.example ESMTP\r\n") as port:
        finding = asked(f"mqtts://127.0.0.1:{port}")
    assert f"no TLS at 127.0.0.1:{port}" in finding.found


def test_port_without_mqtt_is_said() -> None:
    with listener() as port:
        finding = asked(f"mqtt://127.0.0.1:{port}")
    assert finding.mark is Mark.FAILURE
    assert "refuses" in finding.found


@pytest.fixture
def own_certificate(tmp_path: Path) -> tuple[ssl.SSLContext, Path]:
    return self_signed(tmp_path)


def test_certificate_that_nobody_trusts_is_said(own_certificate: tuple[ssl.SSLContext, Path]) -> None:
    context, pem = own_certificate
    with listener(context) as port:
        finding = asked(f"mqtts://127.0.0.1:{port}")
        assert "the broker's certificate is not trusted: self-signed" in finding.found.replace(
            "self signed", "self-signed"
        )
        assert "--ca-file" in finding.advice
        trusted = asked(f"mqtts://127.0.0.1:{port}", pem)
        assert "not trusted" not in trusted.found, "with the certificate at hand, MQTT is what fails"


@pytest.mark.parametrize(
    ("expired", "host", "advice"), [(True, "127.0.0.1", "renew its"), (False, "::1", "use the name")]
)
def test_certificate_that_is_over_or_another_s_is_not_said_to_lack_its_authority(
    tmp_path: Path, expired: bool, host: str, advice: str
) -> None:
    authority = Authority(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.server(host, expired=expired))
    with listener(context) as port:
        finding = asked(f"mqtts://127.0.0.1:{port}", authority.ca_file)
    assert (finding.check, finding.mark) == ("certificate", Mark.FAILURE)
    assert finding.advice.startswith(advice)


# -- the command


def typed(*words: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edge_sdk.cli", "doctor", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=os.environ | {"COLUMNS": "160"} | (environment or {}),
    )


def test_doctor_ends_with_nine_in_one_line_where_the_agent_cannot_run(tmp_path: Path) -> None:
    done = typed("--json", "--broker", "mqtt://127.0.0.1:9", "--state-dir", str(tmp_path))
    assert done.returncode == 9, done.stderr
    assert done.stderr == "edge-agent: the agent cannot run here, see above: broker\n"
    told = json.loads(done.stdout)
    assert told["can_run"] is False
    assert told["findings"][-1]["mark"] == "failure"


def test_doctor_without_its_packages_does_not_crash(tmp_path: Path) -> None:
    """Importing any of them fails, in the doctor and in what it starts."""
    packages = ("numpy", "psutil", "msgspec", "onnxruntime", "paho", "tokenizers", "cryptography", "platformdirs")
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({packages!r}))\n")
    path = os.pathsep.join((str(tmp_path), os.environ.get("PYTHONPATH", "")))
    done = typed("--broker", "mqtt://127.0.0.1:9", environment={"PYTHONPATH": path})
    assert done.returncode == 9, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "✗" in done.stdout
    for package in ("numpy", "onnxruntime", "msgspec"):
        assert package in done.stdout


def test_path_that_is_longer_than_its_column_is_shown_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    path = "/home/somebody/" + "folder/" * 12
    show([Finding("state folder", Mark.OK, f"{path} can be written"), Finding("x", Mark.WARNING, "y", "words " * 20)])
    assert path in "".join(capsys.readouterr().out.split())
