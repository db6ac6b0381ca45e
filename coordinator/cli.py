"""`coordinator`: run a coordinator and manage its fleet.

Exit codes: 0 success, 1 a failed task (`demo`), 2 a wrong option or an unsupported architecture, 3 an unusable model
folder or data file, 4 the broker cannot be reached, or a port or a state folder is in use, 5 a protocol violation, 6 a
failure of the disk or the database, 9 `doctor` found something wrong. Ctrl-C and SIGTERM end `serve`, `api` and
`broker` in an orderly way, with exit code 0, and `demo` with 130.
"""

from __future__ import annotations

import os
import signal
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coordinator.commands.broker import broker_app
from coordinator.commands.device import device_app
from coordinator.commands.doctor import doctor
from coordinator.commands.fleet import fleet_app
from coordinator.commands.metrics import metrics_app
from coordinator.commands.model import model_app
from coordinator.commands.options import MAX_NUMBER, Log, StateDir, known_store
from coordinator.commands.release import release_app
from coordinator.commands.rollout import rollout_app
from coordinator.commands.task import task_app
from coordinator.commands.token import token_app
from coordinator.commands.trust import key_app, root_app
from coordinator.config import CoordinatorConfig
from edge_sdk.command import AsJson, with_version
from edge_sdk.command import run as run_command
from edge_sdk.logs import LogFormat, log_to_stderr
from edge_sdk.settings_help import ABOUT
from edge_sdk.transport.address import MqttVersion

if TYPE_CHECKING:
    from coordinator.service import Service

app = typer.Typer(
    callback=with_version, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__
)
round_app = typer.Typer(no_args_is_help=True, help="List the rounds of training.")
store_app = typer.Typer(no_args_is_help=True, help="Manage the database of the coordinator.")
app.command()(doctor)
app.add_typer(model_app, name="model")
app.add_typer(task_app, name="task")
app.add_typer(fleet_app, name="fleet")
app.add_typer(broker_app, name="broker")
app.add_typer(device_app, name="device")
app.add_typer(round_app, name="round")
app.add_typer(release_app, name="release")
app.add_typer(rollout_app, name="rollout")
app.add_typer(root_app, name="root")
app.add_typer(key_app, name="key")
app.add_typer(token_app, name="token")
app.add_typer(metrics_app, name="metrics")
app.add_typer(store_app, name="store")


@app.command()
def serve(
    state_dir: StateDir,
    broker: Annotated[
        str | None,
        typer.Option(help="MQTT broker: mqtts://host:port or mqtt://host:port; default: as set by `fleet init`."),
    ] = None,
    fleet: Annotated[str | None, typer.Option(help="Name of the fleet; default: as set by `fleet init`.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads for computing salience and for evaluation.")] = 2,
    exit_when_done: Annotated[bool, typer.Option("--exit-when-done", help="Exit once every task has ended.")] = False,
    tasks_at_once: Annotated[
        int, typer.Option(min=1, help="Maximum number of tasks that run at once; the others wait.")
    ] = 4,
    user: Annotated[str | None, typer.Option(help=ABOUT["user"])] = None,
    password_file: Annotated[Path | None, typer.Option(help=ABOUT["password_file"])] = None,
    ca_file: Annotated[Path | None, typer.Option(help=ABOUT["ca_file"])] = None,
    certificate_file: Annotated[
        Path | None, typer.Option(help="Client certificate for the broker; default: the one from `fleet init`.")
    ] = None,
    key_file: Annotated[Path | None, typer.Option(help=ABOUT["key_file"])] = None,
    allow_plaintext: Annotated[bool, typer.Option("--allow-plaintext", help=ABOUT["allow_plaintext"])] = False,
    mqtt_version: Annotated[MqttVersion, typer.Option(help=ABOUT["mqtt_version"])] = MqttVersion.ANY,
    blob_url: Annotated[
        str | None,
        typer.Option(
            help="https://… address at which a web server offers the blobs folder; default: blobs go over MQTT."
        ),
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Serve Prometheus metrics about this process on this port of 127.0.0.1."),
    ] = None,
    log_format: Log = LogFormat.TEXT,
) -> None:
    """Serve the fleet until interrupted: run its tasks and rollouts."""
    from coordinator.fleet.folder import link_of
    from coordinator.service import Service, mqtt_transport
    from coordinator.store.opening import open_store, sole_user
    from coordinator.store.outage import SERVING_PATIENCE_S
    from edge_sdk.disk import raise_file_limit
    from edge_sdk.security.secrets import read_secret

    log_to_stderr("coordinator", log_format)
    raise_file_limit()  # a round's updates are all open while it is aggregated
    config = CoordinatorConfig(
        state_dir=state_dir,
        **link_of(
            state_dir,
            broker,
            fleet,
            ca_file,
            certificate_file,
            user=user,
            password=None if password_file is None else read_secret(password_file),
            allow_plaintext=allow_plaintext,
        ),
        threads=threads,
        exit_when_done=exit_when_done,
        tasks_at_once=tasks_at_once,
        key_file=key_file,
        mqtt_version=mqtt_version,
        blob_url=blob_url,
    )
    with sole_user(state_dir), closing(open_store(state_dir, SERVING_PATIENCE_S)) as store:
        service = Service(config, store, mqtt_transport(config))
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: service.stop())
        with _metrics_of(service, metrics_port):
            service.run()
        if service.is_working:
            os._exit(0)  # the interpreter would wait minutes for work that the next start repeats anyway


def _metrics_of(service: Service, port: int | None) -> AbstractContextManager[None]:
    if port is None:
        return nullcontext()
    from coordinator.metrics.process import showing

    return showing(lambda: service.vitals, port)


@round_app.command("list")
def list_rounds(
    state_dir: StateDir,
    task: Annotated[str | None, typer.Option(help="Only rounds of this task.")] = None,
    as_json: AsJson = False,
) -> None:
    """List every round: who took part, how accurate the result is, what it cost."""
    from coordinator.listing import round_rows, show

    show(round_rows(known_store(state_dir), task), as_json=as_json)


@app.command()
def api(
    state_dir: StateDir,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port to listen on; default: as set by `fleet init`, or 8080.")
    ] = None,
    certificate: Annotated[
        Path | None,
        typer.Option(
            help="TLS certificate with its chain (PEM); default: one issued by the fleet's CA, if there is one."
        ),
    ] = None,
    key: Annotated[Path | None, typer.Option(help="Private key of the certificate (PEM, unencrypted).")] = None,
    allow_plaintext: Annotated[
        bool, typer.Option("--allow-plaintext", help="Allow plain HTTP (no TLS) to other machines.")
    ] = False,
    requests_per_minute: Annotated[
        int, typer.Option(min=0, help="Requests per minute allowed per client and per token; 0: no limit.")
    ] = 1200,
    failures_per_minute: Annotated[
        int,
        typer.Option(min=0, help="Wrong tokens per minute allowed per client (API, login and enrolment); 0: no limit."),
    ] = 10,
    log_format: Log = LogFormat.TEXT,
    no_dashboard: Annotated[
        bool, typer.Option("--no-dashboard", help="Do not serve the dashboard at /dashboard.")
    ] = False,
) -> None:
    """Serve the REST API and the dashboard until interrupted; `token create` makes a token for both."""
    from coordinator.api.app import create_app
    from coordinator.api.limiting import Limits
    from coordinator.api.serving import Listening, serve_api
    from coordinator.fleet.folder import open_fleet
    from coordinator.store.opening import open_store, staying
    from coordinator.store.outage import ASKING_PATIENCE_S

    log_to_stderr("coordinator", log_format)
    listening = Listening.of(open_fleet(state_dir), host, port, certificate, key, allow_plaintext=allow_plaintext)
    with staying(state_dir), closing(open_store(state_dir, ASKING_PATIENCE_S)) as store:
        limits = Limits(requests_per_minute, failures_per_minute)
        served, path = create_app(store, state_dir, limits), None
        if not no_dashboard:
            from coordinator.dashboard.app import add_dashboard

            path = add_dashboard(served, store, state_dir)
        serve_api(served, listening, path)


@app.command()
def audit(
    state_dir: StateDir,
    limit: Annotated[int, typer.Option(min=1, max=MAX_NUMBER, help="Maximum number of entries.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List the audit log, newest first: who has changed what."""
    from coordinator.listing import audit_rows, show

    show(audit_rows(known_store(state_dir), limit), as_json=as_json)


@store_app.command("move")
def move(
    state_dir: StateDir,
    url: Annotated[str, typer.Argument(help="Address of an empty database: postgresql://user@host/name.")],
) -> None:
    """Move the store to another database; `serve` and `api` must not be running."""
    from coordinator.store.opening import move_store

    rows = move_store(state_dir, url)
    typer.echo(f"{rows} rows were copied; from now on, every command with --state-dir {state_dir} uses that database")


@app.command()
def backup(
    file: Annotated[
        Path, typer.Argument(help="Tar file to write. It contains the coordinator's keys: keep it secret.")
    ],
    state_dir: StateDir,
) -> None:
    """Copy the coordinator's whole state into one file; it may be serving meanwhile."""
    from coordinator.backup import back_up

    typer.echo(f"{file} has the store, the keys and {back_up(state_dir, file)} blobs")


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(help="File that `coordinator backup` has written.")],
    state_dir: StateDir,
) -> None:
    """Restore a backup into a new state folder."""
    from coordinator.backup import restore as restored

    typer.echo(f"{state_dir} has the store, the keys and {restored(file, state_dir)} blobs of {file}")


@app.command()
def demo(
    state_dir: Annotated[Path, typer.Option(help="Folder for everything that the demo writes.")] = Path("demo-state"),
    model: Annotated[
        Path | None, typer.Option(help="Hugging Face folder of a text encoder or decoder; default: MiniLM-L6.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="CSV file with the columns text and label; default: BBC News.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each of the two runs.")] = 5,
    seed: Annotated[int, typer.Option(help="Random seed of the split of the data over the devices.")] = 0,
    compare: Annotated[
        bool, typer.Option(help="Also run with only those devices that can train the whole model.")
    ] = True,
    resume: Annotated[bool, typer.Option("--resume", help="Continue after the last closed round.")] = False,
    report: Annotated[Path, typer.Option(help="HTML file to write the plots to.")] = Path("report.html"),
) -> None:
    """Run the whole system on this machine: eight unequal devices train one model, then get a release."""
    from coordinator.demo.main import DemoOptions, run_demo

    run_demo(DemoOptions(state_dir, model, data, rounds, seed, compare, resume, report))


def main() -> None:
    """Run the command; a user's mistake ends in one line and a documented exit code."""
    run_command(app, "coordinator", "pip install 'raffm-edge[coordinator]'")


if __name__ == "__main__":
    main()
