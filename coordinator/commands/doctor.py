"""`coordinator doctor`: what is wrong, and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from coordinator.commands.options import StateDir
from edge_sdk.command import AsJson
from edge_sdk.settings_help import ABOUT
from edge_sdk.transport.address import MqttVersion


def doctor(
    state_dir: StateDir,
    broker: Annotated[
        str | None,
        typer.Option(help="Broker to connect to, mqtt://host:port or mqtts://…; default: as set by `fleet init`."),
    ] = None,
    user: Annotated[str | None, typer.Option(help=ABOUT["user"])] = None,
    password_file: Annotated[Path | None, typer.Option(help=ABOUT["password_file"])] = None,
    ca_file: Annotated[Path | None, typer.Option(help=ABOUT["ca_file"])] = None,
    allow_plaintext: Annotated[bool, typer.Option("--allow-plaintext", help=ABOUT["allow_plaintext"])] = False,
    mqtt_version: Annotated[MqttVersion, typer.Option(help=ABOUT["mqtt_version"])] = MqttVersion.ANY,
    all_blobs: Annotated[bool, typer.Option("--all-blobs", help="Verify every blob instead of a sample.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check a coordinator, and say what to do about what is wrong (exit code 9); it may be serving meanwhile.

    Nothing is changed: not even a store of an older version is upgraded.
    """
    import json

    from coordinator.doctor.examination import examine_coordinator, require_well
    from coordinator.doctor.patient import Patient
    from edge_sdk.diagnosis.findings import as_json as to_json
    from edge_sdk.diagnosis.findings import show
    from edge_sdk.security.secrets import read_secret

    patient = Patient(
        state_dir,
        broker=broker,
        user=user,
        password=None if password_file is None else read_secret(password_file),
        ca_file=ca_file,
        allow_plaintext=allow_plaintext,
        mqtt_version=mqtt_version,
        all_blobs=all_blobs,
    )
    findings = examine_coordinator(patient)
    if as_json:
        typer.echo(json.dumps(to_json(findings), indent=2, ensure_ascii=False))
    else:
        show(findings)
    require_well(findings)
