"""The session of the README: an authority, a broker, a device that enrols, runs, renews its certificate and is revoked.

Every command is the one that a person types, each a process of its own.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from edge_sdk.security.identity import Identity
from tests.support.broker import free_port

pytestmark = [pytest.mark.mosquitto, pytest.mark.long]
PATIENCE_S = 120.0
LIVES_S = 90  # of a certificate: renewed when a third is left
_T = TypeVar("_T")


class Typist:
    """Types in ``folder``; what runs in the background ends with the context, by process id."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.running = folder, dict[str, subprocess.Popen[bytes]]()
        self.environment = os.environ | {"RAFFM_COORDINATOR_STATE_DIR": str(folder / "fleet")}

    def __enter__(self) -> Typist:  # noqa: PYI034 - Self needs Python 3.11
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.running.values():
            process.send_signal(signal.SIGTERM)
        for process in self.running.values():
            _end(process)

    def type(self, module: str, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        command, where = [sys.executable, "-m", module, *words], {"cwd": self.folder, "env": self.environment}
        done = subprocess.run(command, **where, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        assert done.returncode == code, f"{words}: {done.stdout}{done.stderr}{self.story()}"
        return done

    def coordinator(self, *words: str, code: int = 0) -> str:
        return self.type("coordinator.cli", *words, code=code).stdout

    def agent(self, *words: str, code: int = 0) -> str:
        done = self.type("edge_sdk.cli", *words, code=code)
        return done.stdout + done.stderr

    def start(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            where = {"cwd": self.folder, "env": self.environment}
            self.running[name] = subprocess.Popen(command, **where, stdout=log, stderr=log)

    def log_of(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def devices(self) -> dict[str, Any]:
        return {row["device"]: row for row in json.loads(self.coordinator("device", "list", "--json"))}

    def wait_until(self, holds: Callable[[], _T], what: str) -> _T:
        give_up_s = time.monotonic() + PATIENCE_S
        while not (found := holds()):
            assert time.monotonic() < give_up_s, f"{what} never happened\n{self.story()}"
            time.sleep(0.1)
        return found

    def story(self) -> str:
        logs = sorted(self.folder.glob("*.log"))
        return "\n".join(f"== {log.name}\n{log.read_text(errors='replace')[-2000:]}" for log in logs)


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@pytest.fixture
def typist(tmp_path: Path) -> Iterator[Typist]:
    with Typist(tmp_path) as made:
        yield made


def test_device_of_an_open_fleet_needs_its_token_and_what_everybody_may_have(typist: Typist) -> None:
    broker = free_port()
    typist.coordinator("fleet", "init", "--open", "--host", "127.0.0.1", "--broker", f"mqtts://127.0.0.1:{broker}")
    configured = typist.coordinator("broker", "config", "mosquitto", "--bind", "127.0.0.1", "--user", "root")
    typist.start("mosquitto", *configured.split())
    typist.start("serve", sys.executable, "-m", "coordinator.cli", "serve")
    made = typist.type("coordinator.cli", "device", "token", "--device", "pi-5", "--group", "canary")
    (typist.folder / "token").write_text(made.stdout)
    (typist.folder / "texts.csv").write_text("text,label\ncheap,spam\nnoon,ham\nsale,spam\nhello,ham\n")
    typist.wait_until((typist.folder / "fleet/root.json").exists, "a root of trust")
    for name in ("root.json", "ca/authority.pem"):
        shutil.copy(typist.folder / "fleet" / name, typist.folder)
    line = re.search(r"edge-agent (run .*)", made.stderr)
    assert line is not None
    words = line[1].replace("FILE", "texts.csv").split()
    typist.start("agent", sys.executable, "-m", "edge_sdk.cli", *words, "--state-dir", "pi-5")
    typist.wait_until(lambda: typist.devices()["pi-5"]["online"], "the device is there")
    assert typist.devices()["pi-5"]["group"] == "canary"
    found = json.loads(typist.coordinator("doctor", "--json"))
    said = {one["found"]: one["mark"] for one in found["findings"] if one["check"] == "broker"}
    assert said == {f"mqtts://127.0.0.1:{broker} answers; no login was tried": "ok"}
    assert typist.devices()["pi-5"]["online"], "the doctor ended nobody's session"
    assert "its broker refused it and ended its session" in typist.coordinator("device", "revoke", "pi-5")
    typist.wait_until(lambda: "not authori" in typist.log_of("agent").lower(), "the agent hears of it")
    for log in ("agent", "serve", "mosquitto"):
        assert "Traceback" not in typist.log_of(log)
        assert made.stdout.strip() not in typist.log_of(log)


def test_device_enrols_runs_renews_and_is_revoked(typist: Typist) -> None:
    broker, api = free_port(), free_port()
    at = ("--host", "127.0.0.1", "--broker", f"mqtts://127.0.0.1:{broker}", "--api-port", str(api))
    typist.coordinator("fleet", "init", *at, "--certificate-days", str(LIVES_S / 86400))
    configured = typist.coordinator("broker", "config", "mosquitto", "--bind", "127.0.0.1", "--user", "root")
    typist.start("mosquitto", *configured.split())
    python = sys.executable
    typist.start("serve", python, "-m", "coordinator.cli", "serve")
    typist.start("api", python, "-m", "coordinator.cli", "api", "--port", str(api))
    typist.wait_until(lambda: "API at" in typist.log_of("api"), "the API")

    made = typist.type("coordinator.cli", "device", "token", "--device", "pi-5", "--group", "canary")
    (typist.folder / "token").write_text(made.stdout)
    line = re.search(r"edge-agent (enroll .*)", made.stderr)
    assert line is not None
    assert made.stdout.strip() not in made.stderr
    said = typist.agent(*line[1].split(), "--state-dir", "pi-5")
    assert f"pi-5 belongs to fleet default at mqtts://127.0.0.1:{broker}" in said
    assert typist.devices()["pi-5"]["group"] == "canary"

    (typist.folder / "texts.csv").write_text("text,label\ncheap,spam\nnoon,ham\nsale,spam\nhello,ham\n")
    typist.start("agent", python, "-m", "edge_sdk.cli", "run", "--state-dir", "pi-5", "--data", "texts.csv")
    typist.wait_until(lambda: typist.devices()["pi-5"]["online"], "the device is there")
    identity = Identity.of(typist.folder / "pi-5")
    first = identity.span()
    typist.wait_until(lambda: identity.span() != first, "the certificate is renewed")
    assert "the certificate has been renewed" in typist.log_of("agent")
    assert len(json.loads(typist.coordinator("device", "certificates", "pi-5", "--json"))) == 2

    again = typist.agent(*line[1].split(), "--state-dir", "copy", code=5)
    assert "/enroll refuses: the token was used by pi-5" in again

    assert "its broker refused it and ended its session" in typist.coordinator("device", "revoke", "pi-5")
    typist.wait_until(lambda: "its certificate is revoked" in typist.log_of("agent"), "the agent hears of it")
    known = typist.devices()["pi-5"]
    assert (known["online"], known["revoked"]) == (False, True)
    assert typist.running["agent"].poll() is None, "it goes on trying: it may be enrolled again"

    made = typist.type("coordinator.cli", "device", "token", "--device", "pi-5")
    (typist.folder / "token").write_text(made.stdout)
    told = json.loads(typist.agent(*line[1].split(), "--state-dir", "pi-5", "--json"))
    assert (told["device"], told["fleet"]) == ("pi-5", "default")
    typist.wait_until(lambda: typist.devices()["pi-5"]["online"], "it is there again, without a restart")
    entries = [entry["action"] for entry in json.loads(typist.coordinator("audit", "--json"))]
    assert entries[::-1][:2] == ["create enrolment token", "enrol device"]
    assert "revoke device" in entries
    for log in ("agent", "serve", "api", "mosquitto"):
        assert "Traceback" not in typist.log_of(log)
        assert made.stdout.strip() not in typist.log_of(log)
