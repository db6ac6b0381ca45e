"""`edge-agent`: the agent as a command.

Exit codes: 0 done, 2 a wrong option or profile, 3 a data file that cannot be used, 4 no broker there, 5 a broken
contract, 6 the disk refuses, 9 doctor finds that the agent cannot run; see :mod:`edge_sdk.errors`. Ctrl-C ends an agent
politely, with 0.
"""

from __future__ import annotations

import logging
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from edge_sdk.elastic.runtimes import Runtime
from edge_sdk.errors import RaffmError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)

Device = Annotated[str, typer.Option(help="This device's name in the fleet: a-z, 0-9 and '-'.")]
Broker = Annotated[str, typer.Option(help="mqtt://host:port, or mqtts://host:port for TLS.")]
Profile = Annotated[str | None, typer.Option(help="A name from device_profiles/ or a TOML file; default: measure.")]
StateDir = Annotated[Path | None, typer.Option(help="Where state lives; default: the platform's own folder.")]
User = Annotated[str | None, typer.Option(help="User name for the broker.")]
PasswordFile = Annotated[Path | None, typer.Option(help="File that holds the password for the broker.")]
CaFile = Annotated[Path | None, typer.Option(help="Certificate authorities for TLS, instead of the system's.")]
AllowPlaintext = Annotated[bool, typer.Option(help="Allow mqtt:// to another machine.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def _policy(words: str, metavar: str | None = None) -> Any:  # noqa: ANN401 - what typer.Option returns
    """An option whose value :func:`edge_sdk.device.policy.read_policy` reads."""
    return typer.Option(help=words, metavar=metavar, rich_help_panel="What the owner allows", show_default=False)


@app.command()
def run(
    device: Device,
    broker: Broker,
    data: Annotated[
        Path, typer.Option(help="CSV, JSONL, Parquet or .npz file, or folder of pictures; it never leaves the device.")
    ],
    fleet: Annotated[str, typer.Option(help="The fleet's name.")] = "default",
    profile: Profile = None,
    state_dir: StateDir = None,
    release_key: Annotated[Path | None, typer.Option(help="The coordinator's release.pub; none: no releases.")] = None,
    user: User = None,
    password_file: PasswordFile = None,
    ca_file: CaFile = None,
    allow_plaintext: AllowPlaintext = False,
    runtime: Annotated[Runtime, typer.Option(help="What trains; torch has to be installed.")] = Runtime.ONNX,
    cache_mib: Annotated[int, typer.Option(help="Most disk for blobs, MiB; the running model is beside it.")] = 1024,
    seed: Annotated[int, typer.Option(help="Of the held-out split and of the batches.")] = 0,
    image_size: Annotated[int, typer.Option(min=1, help="Pixels a side that pictures are kept with.")] = 224,
    charging_only: Annotated[bool | None, _policy("Work on the charger only.")] = None,
    battery_floor: Annotated[str | None, _policy("Least share of the battery, as 0.3; default 0.2.", "SHARE")] = None,
    idle_only: Annotated[bool | None, _policy("Work while others use at most a quarter of the processor.")] = None,
    quiet_hours: Annotated[str | None, _policy("Local time in which to do nothing.", "22:00-07:00,…")] = None,
    unmetered_only: Annotated[bool | None, _policy("Work on links that are known to be unmetered only.")] = None,
    max_temperature: Annotated[str | None, _policy("Ceiling in °C; default 85.", "C")] = None,
    daily_energy_wh: Annotated[str | None, _policy("Energy a day for training.", "WH")] = None,
    training_watts: Annotated[str | None, _policy("What the device draws while it trains.", "W")] = None,
    daily_mib: Annotated[str | None, _policy("Traffic a day, both ways together.", "MIB")] = None,
) -> None:
    """Train what the coordinator offers and serve what it releases, until interrupted."""
    from edge_sdk.config import AgentConfig, default_state_dir
    from edge_sdk.device.policy import read_policy
    from edge_sdk.supervisor import Supervisor

    policy = read_policy(
        {
            "charging_only": charging_only,
            "battery_floor_share": battery_floor,
            "idle_only": idle_only,
            "quiet_hours": quiet_hours,
            "unmetered_only": unmetered_only,
            "max_temperature_c": max_temperature,
            "daily_energy_wh": daily_energy_wh,
            "training_watts": training_watts,
            "daily_mib": daily_mib,
        }
    )
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", stream=sys.stderr)
    logging.getLogger("edge_sdk").setLevel(logging.INFO)
    config = AgentConfig(
        device=device,
        broker=broker,
        fleet=fleet,
        profile=profile,
        state_dir=state_dir or default_state_dir(device),
        release_key=release_key,
        user=user,
        password=None if password_file is None else _secret(password_file),
        ca_file=ca_file,
        allow_plaintext=allow_plaintext,
        policy=policy,
        runtime=runtime,
        cache_bytes=cache_mib << 20,
        seed=seed,
        image_size=image_size,
    )
    supervisor = Supervisor(config, data)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: supervisor.stop())
    supervisor.run()


@app.command("profile")
def show_profile(
    profile: Profile = None,
    state_dir: StateDir = None,
    list_all: Annotated[bool, typer.Option("--list", help="List the profiles that are known; memory in MiB.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what was measured on this machine, and what the agent may use of it."""
    if list_all:
        _list_profiles(as_json)
        return
    import msgspec
    from rich.console import Console

    from edge_sdk.device.describe import describe, table_of
    from edge_sdk.device.machine import Machine
    from edge_sdk.device.policy import Policy

    machine = Machine(profile, Policy(), state_dir or Path.cwd())
    rows = describe(machine, machine.snapshot())
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode({row.name: row.value for row in rows})).decode())
    else:
        Console().print(table_of(rows))


@app.command()
def doctor(
    broker: Annotated[str | None, typer.Option(help="Also try to reach it: mqtt://host:port or mqtts://….")] = None,
    profile: Profile = None,
    state_dir: StateDir = None,
    user: User = None,
    password_file: PasswordFile = None,
    ca_file: CaFile = None,
    allow_plaintext: AllowPlaintext = False,
    as_json: AsJson = False,
) -> None:
    """Say whether an agent can run here, what is missing, and what to do. Ends with 9 where it cannot."""
    import json

    from edge_sdk.device.checks import CHECKS
    from edge_sdk.device.doctor import Patient, examine, require_fit, show
    from edge_sdk.device.doctor import as_json as to_json
    from edge_sdk.device.system import System

    patient = Patient(
        System(),
        state_dir,
        profile=profile,
        broker=broker,
        user=user,
        password=None if password_file is None else _secret(password_file),
        ca_file=ca_file,
        allow_plaintext=allow_plaintext,
    )
    findings = examine(patient, CHECKS)
    if as_json:
        typer.echo(json.dumps(to_json(findings), indent=2, ensure_ascii=False))
    else:
        show(findings)
    require_fit(findings)


@app.command()
def predict(
    text: Annotated[list[str], typer.Argument(help="One or more texts.")],
    device: Device,
    state_dir: StateDir = None,
    as_json: AsJson = False,
) -> None:
    """Ask the model that this device runs, without a coordinator."""
    import msgspec

    from edge_sdk.config import default_state_dir
    from edge_sdk.inference.serving import Serving

    predictions = Serving((state_dir or default_state_dir(device)) / "slots", threads=1).predict(text)
    for asked, answer in zip(text, predictions, strict=True):
        line = {"text": asked, "label": answer.label, "probability": round(answer.probability, 4)}
        typer.echo(
            msgspec.json.encode(line).decode() if as_json else f"{answer.label}  {answer.probability:.1%}  {asked}"
        )


def _list_profiles(as_json: bool) -> None:
    import msgspec
    from rich.console import Console

    from edge_sdk.device.describe import table_of_profiles
    from edge_sdk.device.profile import all_profiles

    profiles = all_profiles()
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(profiles)).decode())
    else:
        Console().print(table_of_profiles(profiles))


def _secret(path: Path) -> str:
    from edge_sdk.errors import ConfigurationError

    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigurationError(f"password file {path} cannot be read: {error.strerror}") from error


def main() -> None:
    """Run the command; a user's mistake ends in one line and a documented exit code."""
    try:
        app(prog_name="edge-agent")
    except RaffmError as error:
        typer.echo(f"edge-agent: {error}", err=True)
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
