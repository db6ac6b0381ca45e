"""A user's mistakes end in one line on standard error, with the documented exit code, and never in a traceback."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from coordinator.store.opening import open_store, sole_user

NOBODY = "mqtt://127.0.0.1:9"
GOOD_CSV = "text,label\n" + "".join(f"some text {i},{'xy'[i % 2]}\n" for i in range(20))


def typed(
    module: str, *words: object, limits: Callable[[], None] | None = None, folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        preexec_fn=limits,
        cwd=folder,
        env=os.environ | {"COLUMNS": "200"},
    )


def check(done: subprocess.CompletedProcess[str], code: int, *parts: str) -> None:
    lines = done.stderr.strip().splitlines()
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert len(lines) == 1, done.stderr
    for part in parts:
        assert part in lines[0]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "texts.csv"
    path.write_text(GOOD_CSV)
    return path


def agent(data: Path, state: Path, *words: object, broker: str = NOBODY) -> tuple[object, ...]:
    return ("run", "--device", "pi", "--broker", broker, "--data", data, "--state-dir", state, *words)


def task(state: Path, model: Path, data: Path) -> tuple[object, ...]:
    return ("task", "create", "t", "--state-dir", state, "--model", model, "--calibration", data, "--test", data)


def test_encoding_that_there_is_not(data: Path, tmp_path: Path) -> None:
    done = typed("coordinator.cli", *task(tmp_path / "s", tmp_path, data), "--encoding", "int4")
    check(done, 2, "encoding 'int4' is unknown; use fp32, fp16, int8, or topk:SHARE")


def test_more_nested_widths_than_there_may_be(data: Path, tmp_path: Path) -> None:
    done = typed("coordinator.cli", *task(tmp_path / "s", tmp_path, data), *("--nest", "0.5") * 4)
    check(done, 2, "4 nested widths: give at most 3")


def test_no_broker_there_for_an_agent(data: Path, tmp_path: Path) -> None:
    check(typed("edge_sdk.cli", *agent(data, tmp_path / "s")), 4, "no broker answers at mqtt://127.0.0.1:9")


def test_no_broker_there_for_the_coordinator(tmp_path: Path) -> None:
    done = typed("coordinator.cli", "serve", "--state-dir", tmp_path / "s", "--broker", NOBODY)
    check(done, 4, "no broker answers at mqtt://127.0.0.1:9")


def test_plaintext_to_another_machine(data: Path, tmp_path: Path) -> None:
    done = typed("edge_sdk.cli", *agent(data, tmp_path / "s", broker="mqtt://192.0.2.1:1883"))
    check(done, 2, "192.0.2.1", "plaintext")


def test_port_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        check(typed("coordinator.cli", "broker", "--state-dir", tmp_path, "--port", port), 4, str(port))


def test_unknown_profile_names_the_closest(data: Path, tmp_path: Path) -> None:
    done = typed("edge_sdk.cli", *agent(data, tmp_path / "s", "--profile", "raspbery-pi-5-8gb"))
    check(done, 2, "raspbery-pi-5-8gb", "did you mean raspberry-pi-5-8gb?")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--battery-floor", "30"), "--battery-floor 30.0 must be from 0 to 1"),
        (("--battery-floor", "much"), "--battery-floor = 'much' is wrong"),
        (("--quiet-hours", "22-7"), "--quiet-hours '22-7' are not of the form 22:00-07:00"),
        (("--daily-mib", "-5"), "--daily-mib -5.0 must not be negative"),
    ],
)
def test_policy_that_cannot_be(data: Path, tmp_path: Path, words: tuple[str, str], named: str) -> None:
    check(typed("edge_sdk.cli", *agent(data, tmp_path / "s", *words)), 2, named)


def test_unknown_architecture(data: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    check(typed("coordinator.cli", *task(tmp_path / "s", tmp_path, data)), 2, "'mamba'", "bert")


def test_adapters_without_the_part_that_trains_them(data: Path, tmp_path: Path) -> None:
    done = typed("coordinator.cli", *task(tmp_path / "s", tmp_path, data), "--adapters", "dora")
    check(done, 2, "--adapters dora with --part no-embeddings", "--part adapters")


def test_model_folder_missing(data: Path, tmp_path: Path) -> None:
    check(typed("coordinator.cli", *task(tmp_path / "s", tmp_path / "none", data)), 3, "none", "does not exist")


def test_data_without_the_columns(tmp_path: Path) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_text("a,b\n1,2\n")
    check(typed("edge_sdk.cli", *agent(bad, tmp_path / "s")), 3, "bad.csv", "no column that is known", "text, label")


def test_data_missing(tmp_path: Path) -> None:
    check(typed("edge_sdk.cli", *agent(tmp_path / "no.csv", tmp_path / "s")), 3, "no.csv does not exist")


def test_demo_with_nothing_to_resume(tmp_path: Path) -> None:
    check(typed("coordinator.cli", "demo", "--resume", folder=tmp_path), 2, "nothing to resume in demo-state")


def test_demo_in_a_folder_of_other_files_leaves_them(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    done = typed("coordinator.cli", "demo", "--state-dir", "mine", folder=tmp_path)
    check(done, 2, "mine holds other files")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years"


def test_second_demo_leaves_the_state_of_the_first(tmp_path: Path) -> None:
    state = tmp_path / "demo-state" / "coordinator"
    with sole_user(state), closing(open_store(state)):
        for again in ((), ("--resume",)):
            check(
                typed("coordinator.cli", "demo", *again, folder=tmp_path), 4, "a demo is already running in demo-state"
            )
    assert (state / "coordinator.sqlite").exists()


def test_disk_that_takes_no_more(data: Path, tmp_path: Path) -> None:
    """A file may not grow beyond 16 KiB: what a full disk does to a store."""

    def no_space() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (16 << 10, 16 << 10))

    check(typed("edge_sdk.cli", *agent(data, tmp_path / "s"), limits=no_space), 6, "outbox")


def test_state_folder_that_cannot_be_made(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    check(typed("edge_sdk.cli", *agent(data, tmp_path / "file" / "s")), 6, "file")
    check(typed("coordinator.cli", *task(tmp_path / "file" / "s", tmp_path, data)), 6, "file")


def test_root_of_trust_missing(data: Path, tmp_path: Path) -> None:
    done = typed("edge_sdk.cli", *agent(data, tmp_path / "s", "--root", tmp_path / "no.json"))
    check(done, 2, "no.json", "copy root.json from the coordinator")


def test_unknown_key_in_a_file_of_settings(tmp_path: Path) -> None:
    (tmp_path / "agent.toml").write_text("brocker = 1\n")
    done = typed("edge_sdk.cli", "run", "--config", tmp_path / "agent.toml")
    check(done, 2, "agent.toml: brocker is unknown; did you mean broker?")


def test_agent_told_nothing() -> None:
    check(typed("edge_sdk.cli", "run"), 2, "data is not given: use --data, RAFFM_EDGE_DATA, or data = … in a file")


@pytest.mark.skipif(Path("/run/systemd/system").exists(), reason="systemd runs here")
@pytest.mark.parametrize("command", ["install", "start", "stop", "status", "logs", "uninstall"])
def test_service_without_systemd(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    check(
        typed("edge_sdk.cli", "service", command, "--user"), 10, "systemd does not run here", "edge-agent run --config"
    )
    assert not any(tmp_path.iterdir())
