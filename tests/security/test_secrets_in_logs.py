"""No secret is in what a coordinator, its API, its doctor or an agent says, keeps or is started with."""

from __future__ import annotations

import json
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import httpx
import msgspec
import psutil
import pytest

from coordinator.api.access import make_token
from coordinator.store.opening import open_store
from coordinator.store.states import AccessRole, Phase
from tests.support.broker import free_port, mosquitto_broker
from tests.support.canary import leaks
from tests.support.light_model import light_task
from tests.support.proof import Proof

pytestmark = pytest.mark.mosquitto
PATIENCE_S = 60.0
LIGHT = "from tests.support.light_model import install; install(); from coordinator.cli import main; main()"
COORDINATOR = ("-c", LIGHT)
AGENT = ("-m", "edge_sdk.cli")


@contextmanager
def running(log: Path, *words: object) -> Iterator[subprocess.Popen[bytes]]:
    """A command, what it says in ``log``; it ends politely."""
    with log.open("wb") as out:
        process = subprocess.Popen([sys.executable, *map(str, words)], stdout=out, stderr=out)
    try:
        yield process
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()


def finished(*words: object) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, capture_output=True, check=False, timeout=PATIENCE_S)


def wait_for(log: Path, words: str) -> None:
    give_up_s = time.monotonic() + PATIENCE_S
    while words not in log.read_text():
        assert time.monotonic() < give_up_s, log.read_text()
        time.sleep(0.05)


def started_with(*processes: subprocess.Popen[bytes]) -> list[bytes]:
    """What anybody on the machine sees of them, and of all that they have started."""
    own = [psutil.Process(process.pid) for process in processes]
    found = []
    for each in (each for one in own for each in (one, *one.children(recursive=True))):
        with suppress(psutil.NoSuchProcess):  # it has ended meanwhile, and may not be gone yet
            found.append("\0".join(each.cmdline()).encode())
    return found


def kept_in(*folders: Path) -> list[bytes]:
    """All files but those that are there for the secret, or for the examples."""
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    assert {file.suffix for file in files} >= {".sqlite", ".key", ".jsonl"}
    assert all(file.stat().st_mode & 0o077 == 0 for file in files if file.suffix == ".key")
    return [file.read_bytes() for file in files if file.suffix not in {".key", ".jsonl", ".npz"}]


def fetched(port: int, token: str) -> httpx.Response:
    header = {"Authorization": f"Bearer {token}"}
    return httpx.get(f"http://127.0.0.1:{port}/metrics", headers=header, timeout=PATIENCE_S)


def test_no_secret_is_said(tmp_path: Path, proof: Proof) -> None:
    canaries = {name: f"kanarien-{secrets.token_hex(12)}" for name in ("coordinator", "pi", "wrong", "stolen", "text")}
    for name, canary in canaries.items():
        (tmp_path / name).write_text(f"{canary}\n")
    (tmp_path / "texts.csv").write_text("text,label\n" + f"{canaries['text']},x\nother,y\n" * 20)
    state, logs, port = tmp_path / "state", tmp_path / "logs", free_port()
    logs.mkdir()
    with closing(open_store(state)) as store:
        task = light_task(tmp_path, "news")
        with store.transaction() as tx:
            tx.tasks.add("news", msgspec.json.encode(task), 0.0)
        token = make_token(store, "prometheus", AccessRole.VIEWER, None, time.time(), "a test")
    users = {name: canaries[name] for name in ("coordinator", "pi")}
    as_json = ("--log-format", "json")
    with ExitStack() as stack:
        address = stack.enter_context(mosquitto_broker(users)).address
        where = ("--state-dir", state)
        own = ("--broker", address, "--user", "coordinator", "--password-file")
        agent = ("--broker", address, "--device", "pi", "--data", tmp_path / "texts.csv", "--user", "pi")
        serve = ("serve", *where, *own, tmp_path / "coordinator", *as_json)
        coordinator = stack.enter_context(running(logs / "serve", *COORDINATOR, *serve))
        api = stack.enter_context(running(logs / "api", *COORDINATOR, "api", *where, "--port", port, *as_json))
        device = ("--state-dir", tmp_path / "device", "--password-file", tmp_path / "pi")
        pi = stack.enter_context(running(logs / "agent", *AGENT, "run", *agent, *device, *as_json))
        wait_for(logs / "serve", "pi is online")
        wait_for(logs / "api", "API at")
        seen = started_with(coordinator, api, pi)
        metrics, stranger = fetched(port, token), fetched(port, canaries["stolen"])
        doctor = finished(*COORDINATOR, "doctor", *where, *own, tmp_path / "wrong", "--json")
    assert (metrics.status_code, stranger.status_code) == (200, 401)
    assert "Not authorized" in doctor.stdout.decode()
    lines = [line for log in logs.iterdir() for line in log.read_bytes().splitlines()]
    assert all({"time", "level", "logger", "message"} <= json.loads(line).keys() for line in lines)
    said = [*lines, *seen, metrics.content, stranger.content, doctor.stdout, doctor.stderr]
    said += kept_in(state, tmp_path / "device")
    keys = [path.read_text().splitlines()[1] for path in state.glob("*.key")]
    assert len(keys) == 3, "of each role"
    hidden = [*canaries.values(), token, *keys]
    told = f"of {len(hidden)} secrets, forms found"
    proof.show("S12", f"{told} in what is said, kept or started with", len(leaks(said, hidden)), at_most=0)
    for canary in hidden:
        assert leaks([*said, f"the control: {canary}".encode()], [canary])


@pytest.mark.long
def test_no_secret_is_said_or_kept_over_a_whole_round(
    tmp_path: Path, small_model: Path, template_cache: dict[str, str], proof: Proof
) -> None:
    """Of real processes, the training ones among them: passwords, keys, a token, and what else is in a device's file.

    The texts themselves are :mod:`tests.security.test_examples_stay`'s.
    """
    from tests.support.small_fleet import SmallFleet, some_examples

    names = ("coordinator", "a", "b")
    users = {name: f"kanarien-{secrets.token_hex(12)}" for name in names}
    words = {name: f"kanarien-{secrets.token_hex(12)}" for name in names[1:]}
    given = {name: (tmp_path / f"{name}.password", ("--user", name, "--password-file")) for name in names}
    seen = set[bytes]()
    with (
        mosquitto_broker(users) as broker,
        SmallFleet(tmp_path, small_model, str(broker.address), template_cache) as fleet,
    ):
        for name, (file, _) in given.items():
            file.write_text(users[name])
        fleet.create_task("news", "--rounds", "1", "--min-devices", "2", "--max-steps", "8")
        token = fleet.command(
            "coordinator.cli", "token", "create", "page", "--state-dir", str(fleet.state)
        ).stdout.split()[-1]
        fleet.serve(*given["coordinator"][1], str(given["coordinator"][0]))
        for name in names[1:]:
            own = some_examples(40, seed=len(name))
            rows = (f"{text},{label},{words[name]}\n" for text, label in zip(own.texts, own.labels, strict=True))
            data = tmp_path / f"{name}.csv"
            data.write_text("text,label,note\n" + "".join(rows))
            fleet.agent(name, 400, data=data, options=(*given[name][1], str(given[name][0])))
        coordinator = fleet.processes["coordinator"]
        fleet.wait_until(
            lambda: seen.update(started_with(*fleet.processes.values())) or coordinator.poll() is not None, "end"
        )
        assert coordinator.poll() == 0, fleet.story()
        logs = [log.read_bytes() for log in tmp_path.glob("*.log")]
        kept = kept_in(fleet.state, *(tmp_path / name for name in names[1:]))
        keys = [path.read_text().splitlines()[1] for path in fleet.state.glob("*.key")]
        (known,) = fleet.read(lambda tx: tx.rounds.all("news"))
        assert known.phase is Phase.CLOSED, fleet.story()
    assert any(b"edge_sdk.training.worker" in line for line in seen), "training was seen too"
    said, hidden = [*logs, *seen, *kept], [*users.values(), *words.values(), token, *keys]
    assert len(logs) == len(names)
    found = leaks(said, hidden)
    proof.show("S12", f"of {len(hidden)} secrets, forms found over a round of processes", len(found), at_most=0)
    assert leaks([*said, f"the control: {token}".encode()], [token])
