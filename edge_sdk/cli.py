"""`edge-agent`: run a device agent, and look after it.

Exit codes: 0 success, 2 a wrong option or setting, 3 an unusable data file, 4 the broker cannot be reached, 5 a
protocol violation, 6 a full disk or one that cannot be written, 9 `doctor` found that the agent cannot run here, 10
systemd is missing or refuses. Ctrl-C and SIGTERM end `run` in an orderly way, with exit code 0.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from edge_sdk.command import AsJson, waiting, with_version
from edge_sdk.command import run as run_command
from edge_sdk.elastic.runtimes import Runtime
from edge_sdk.logs import LogFormat, log_to_stderr
from edge_sdk.service.cli import app as service_app
from edge_sdk.settings_help import ABOUT
from edge_sdk.transport.address import MqttVersion

app = typer.Typer(
    callback=with_version, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__
)
app.add_typer(service_app, name="service")

Config = Annotated[
    Path | None,
    typer.Option(
        envvar="RAFFM_EDGE_CONFIG",
        help="TOML settings file; `edge-agent config` prints a template. Options override it.",
    ),
]
Device = Annotated[str, typer.Option(help=ABOUT["device"])]
Profile = Annotated[str | None, typer.Option(help=ABOUT["profile"])]
StateDir = Annotated[Path | None, typer.Option(help=ABOUT["state_dir"])]
Broker = Annotated[str | None, typer.Option(help=ABOUT["broker"])]
User = Annotated[str | None, typer.Option(help=ABOUT["user"])]
PasswordFile = Annotated[Path | None, typer.Option(help=ABOUT["password_file"])]
CertificateFile = Annotated[Path | None, typer.Option(help=ABOUT["certificate_file"])]
KeyFile = Annotated[Path | None, typer.Option(help=ABOUT["key_file"])]
AllowPlaintext = Annotated[bool | None, typer.Option(help=ABOUT["allow_plaintext"])]
CaFile = Annotated[Path | None, typer.Option(help=ABOUT["ca_file"])]
Mqtt = Annotated[MqttVersion | None, typer.Option("--mqtt-version", help=ABOUT["mqtt_version"])]


def _rule(name: str, flag: str = "", metavar: str | None = None) -> Any:  # noqa: ANN401 - what typer.Option returns
    """An option for the policy's field ``name``, parsed with the other settings; without ``flag`` it is a switch."""
    switch = name.replace("_", "-")
    words = ABOUT[f"policy.{name}"]
    return typer.Option(flag or f"--{switch}/--no-{switch}", help=words, metavar=metavar)


@app.command()
def run(
    context: typer.Context,
    config: Config = None,
    device: Annotated[str | None, typer.Option(help=ABOUT["device"])] = None,
    broker: Broker = None,
    data: Annotated[Path | None, typer.Option(help=ABOUT["data"])] = None,
    fleet: Annotated[str | None, typer.Option(help=ABOUT["fleet"])] = None,
    profile: Profile = None,
    state_dir: StateDir = None,
    root: Annotated[Path | None, typer.Option(help=ABOUT["root"])] = None,
    user: User = None,
    password_file: PasswordFile = None,
    ca_file: CaFile = None,
    certificate_file: CertificateFile = None,
    key_file: KeyFile = None,
    allow_plaintext: AllowPlaintext = None,
    mqtt_version: Mqtt = None,
    runtime: Annotated[Runtime | None, typer.Option(help=ABOUT["runtime"])] = None,
    threads: Annotated[int | None, typer.Option(help=ABOUT["threads"])] = None,
    cache_mib: Annotated[int | None, typer.Option(help=ABOUT["cache_bytes"], min=1)] = None,
    image_size: Annotated[int | None, typer.Option(help=ABOUT["image_size"])] = None,
    seed: Annotated[int | None, typer.Option(help=ABOUT["seed"])] = None,
    log_format: Annotated[LogFormat | None, typer.Option(help=ABOUT["log_format"])] = None,
    policy_charging_only: Annotated[bool | None, _rule("charging_only")] = None,
    policy_battery_floor_share: Annotated[str | None, _rule("battery_floor_share", "--battery-floor", "SHARE")] = None,
    policy_idle_only: Annotated[bool | None, _rule("idle_only")] = None,
    policy_quiet_hours: Annotated[str | None, _rule("quiet_hours", "--quiet-hours", "22:00-07:00,…")] = None,
    policy_unmetered_only: Annotated[bool | None, _rule("unmetered_only")] = None,
    policy_max_temperature_c: Annotated[str | None, _rule("max_temperature_c", "--max-temperature", "C")] = None,
    policy_daily_energy_wh: Annotated[str | None, _rule("daily_energy_wh", "--daily-energy-wh", "WH")] = None,
    policy_training_watts: Annotated[str | None, _rule("training_watts", "--training-watts", "W")] = None,
    policy_daily_mib: Annotated[str | None, _rule("daily_mib", "--daily-mib", "MIB")] = None,
) -> None:
    """Run the agent until interrupted: train what the coordinator offers, serve what it releases.

    Every option can also be set in a settings file (--config) or in the environment (RAFFM_EDGE_DEVICE, …). Options
    override the environment, and the environment overrides the file.
    """
    given = {name: value for name, value in locals().items() if name not in {"context", "config"}}
    options = {name.replace("policy_", "policy."): value for name, value in given.items()}
    flags = {str(each.name).replace("policy_", "policy."): each.opts[0] for each in context.command.params}
    if (most_mib := options.pop("cache_mib")) is not None:
        options["cache_bytes"], flags["cache_bytes"] = most_mib << 20, flags["cache_mib"]
    from edge_sdk.agent.supervisor import Supervisor
    from edge_sdk.service.notify import Notifier
    from edge_sdk.settings import load_settings

    settings = load_settings(config, os.environ, options, flags)
    log_to_stderr("edge_sdk", settings.log_format)
    notifier = Notifier.of(os.environ)
    supervisor = Supervisor(settings.config, settings.data, on_tick=notifier.tick)

    def stop(*_: object) -> None:
        notifier.stopping()
        supervisor.stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    supervisor.run()


@app.command()
def enroll(
    coordinator: Annotated[str, typer.Option(help="Address of the coordinator's API: https://host:port.")],
    device: Device,
    token_file: Annotated[Path, typer.Option(help="File with the one-time token; - reads standard input.")],
    ca_fingerprint: Annotated[
        str | None,
        typer.Option(help="Fingerprint (sha256:…) of the fleet's CA, as `coordinator device token` prints it."),
    ] = None,
    ca_file: Annotated[
        Path | None, typer.Option(help="Certificate of the fleet's CA, instead of its fingerprint.")
    ] = None,
    state_dir: StateDir = None,
    as_json: AsJson = False,
) -> None:
    """Enrol this device: get its certificate and the fleet's settings. `run` then only needs --device and --data."""
    import json

    from edge_sdk.config import default_state_dir
    from edge_sdk.security.enrolment import enroll as enrolled
    from edge_sdk.security.secrets import read_secret

    folder = state_dir or default_state_dir(device)
    token = sys.stdin.readline().strip() if token_file == Path("-") else read_secret(token_file)
    with waiting(f"asking {coordinator}"):
        told = enrolled(coordinator, token, device, folder, ca_file=ca_file, fingerprint=ca_fingerprint)
    if as_json:
        told_at = {"device": device, "fleet": told.fleet, "broker": told.broker, "state_dir": str(folder)}
        typer.echo(json.dumps(told_at, indent=2))
    else:
        typer.echo(f"{device} belongs to fleet {told.fleet} at {told.broker}; its key and certificate are in {folder}")


@app.command("config")
def show_config() -> None:
    """Print a settings file for --config that explains every key."""
    from edge_sdk.settings import example_file

    typer.echo(example_file(), nl=False)


@app.command("profile")
def show_profile(
    config: Config = None,
    profile: Profile = None,
    state_dir: StateDir = None,
    list_all: Annotated[bool, typer.Option("--list", help="List the known profiles; memory in MiB.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what was measured on this machine, and how much of it the agent may use.

    Settings are taken from a file, the environment and options, as by `run`; among them the policy.
    """
    if list_all:
        _list_profiles(as_json)
        return
    given = _given_values({"config": config, "profile": profile, "state_dir": state_dir})
    import msgspec
    from rich.console import Console

    from edge_sdk.device.accelerator import onnxruntime_providers
    from edge_sdk.device.describe import describe, table_of
    from edge_sdk.device.machine import Machine
    from edge_sdk.device.policy import Policy
    from edge_sdk.device.processor import GEMM_S

    policy = Policy(**{name.removeprefix("policy."): it for name, it in given.items() if name.startswith("policy.")})
    machine = Machine(
        given.get("profile"),
        policy,
        given.get("state_dir") or Path.cwd(),
        runtime=given.get("runtime", Runtime.ONNX),
        threads=given.get("threads"),
    )
    with waiting("measuring this machine"):
        machine.measure(GEMM_S)
        snapshot = msgspec.structs.replace(machine.snapshot(), providers=onnxruntime_providers())
    rows = describe(machine, snapshot)
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode({row.name: row.value for row in rows})).decode())
    else:
        Console().print(table_of(rows))


@app.command()
def doctor(
    config: Config = None,
    broker: Annotated[
        str | None, typer.Option(help="Also connect to this broker: mqtt://host:port or mqtts://…")
    ] = None,
    profile: Profile = None,
    state_dir: StateDir = None,
    user: User = None,
    password_file: PasswordFile = None,
    ca_file: CaFile = None,
    certificate_file: CertificateFile = None,
    key_file: KeyFile = None,
    allow_plaintext: Annotated[bool | None, typer.Option("--allow-plaintext", help=ABOUT["allow_plaintext"])] = None,
    mqtt_version: Mqtt = None,
    as_json: AsJson = False,
) -> None:
    """Check whether an agent can run here, and say what to do if not (exit code 9).

    Settings are taken from a file, the environment and options, as by `run`.
    """
    given = _given_values({name: value for name, value in locals().items() if name != "as_json"})
    import json

    from edge_sdk.device.checks import CHECKS
    from edge_sdk.device.doctor import Patient, require_fit
    from edge_sdk.device.system import System
    from edge_sdk.diagnosis.findings import as_json as to_json
    from edge_sdk.diagnosis.findings import examine, show
    from edge_sdk.security.secrets import read_secret

    secret = given.get("password_file")
    names = ("broker", "ca_file", "certificate_file", "key_file", "profile", "state_dir", "user")
    patient = Patient(
        System(),
        config=config,
        flaw="" if config is None else _flaw_of(config, given.get("state_dir")),
        data=given.get("data"),
        password=None if secret is None else read_secret(secret),
        allow_plaintext=given.get("allow_plaintext", False),
        mqtt_version=given.get("mqtt_version", MqttVersion.ANY),
        **{name: given.get(name) for name in names},
    )
    with waiting("examining this machine"):
        findings = examine(patient, CHECKS)
    if as_json:
        typer.echo(json.dumps(to_json(findings), indent=2, ensure_ascii=False))
    else:
        show(findings)
    require_fit(findings)


@app.command()
def predict(
    given: Annotated[list[str], typer.Argument(help="Texts, image files, or .npy or CSV files of windows.")],
    config: Config = None,
    device: Annotated[str | None, typer.Option(help=ABOUT["device"])] = None,
    state_dir: StateDir = None,
    task: Annotated[str | None, typer.Option(help="The task whose model to use, if the device has several.")] = None,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Longest text that a generating model may write, in tokens.")
    ] = 64,
    as_json: AsJson = False,
) -> None:
    """Run inference with this device's current model; no coordinator is needed.

    The device, or its state folder, is taken from a file, the environment and options, as by `run`.

    For token classification, separate the words of a text by spaces. A CSV file of windows has one column per channel
    and one row per step, one window after the other.
    """
    import msgspec

    from edge_sdk.agent.tasks import folder_with
    from edge_sdk.config import default_state_dir
    from edge_sdk.errors import ConfigurationError
    from edge_sdk.inference.asking import ask
    from edge_sdk.inference.serving import Serving

    settings = _given_values({"config": config, "device": device, "state_dir": state_dir})
    if not settings.keys() & {"device", "state_dir"}:
        raise ConfigurationError("device is not given: use --device, RAFFM_EDGE_DEVICE, or device = … in --config")
    folder = folder_with(settings.get("state_dir") or default_state_dir(settings["device"]), task)
    for answer in ask(Serving(folder / "slots", threads=1, is_only_asked=True), given, max_new_tokens):
        asked = answer.asked.encode("utf-8", "replace").decode()  # a file's name may be any bytes
        if isinstance(answer.said, str):
            line: dict[str, str | float] = {"answer": answer.said}
            shown = f"{asked} → {answer.said.strip()}"
        else:
            label, probability = answer.said.label, answer.said.probability
            line = {"label": label, "probability": round(probability, 4)}
            shown = f"{label}  {probability:.1%}  {asked}"
        typer.echo(msgspec.json.encode({answer.kind: asked} | line).decode() if as_json else shown)


def _given_values(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings by key, of ``options`` and what they name.

    :mod:`edge_sdk.settings` is imported only if it is needed: what it imports may be what the doctor finds missing.
    """
    config, given = options["config"], {name: value for name, value in options.items() if value is not None}
    given.pop("config", None)
    if config is None and "state_dir" not in given and not any(it.startswith("RAFFM_EDGE_") for it in os.environ):
        return given
    from edge_sdk.settings import given_values

    return given_values(config, os.environ, given)


def _flaw_of(config: Path, state_dir: Path | None) -> str:
    """Why an agent cannot start with the settings in this file, in words; empty if it can."""
    from edge_sdk.errors import ConfigurationError
    from edge_sdk.settings import load_settings

    try:
        load_settings(config, os.environ, {"state_dir": state_dir})
    except ConfigurationError as error:
        return str(error)
    return ""


def _list_profiles(as_json: bool) -> None:
    import msgspec
    from rich.console import Console

    from edge_sdk.device.describe import table_of_profiles
    from edge_sdk.profile import all_profiles

    profiles = all_profiles()
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(profiles)).decode())
    else:
        Console().print(table_of_profiles(profiles))


def main() -> None:
    """Run the command; a user's mistake ends in one line and a documented exit code."""
    run_command(app, "edge-agent", "`edge-agent doctor` tells what else is missing")


if __name__ == "__main__":
    main()
