"""`coordinator`: manage a fleet from a terminal.

Exit codes: 0 done, 2 a wrong option or architecture, 3 a model folder or data file that cannot be used, 4 no broker
there or a port taken, 5 a broken contract, 6 the disk or the
database refuses or a database server is away, 9 doctor finds something wrong. Ctrl-C and
SIGTERM end `serve`, `api` and `broker` politely, with 0, and `demo` with 130.
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
from coordinator.commands.options import AsJson, Log, StateDir, open_store
from coordinator.commands.release import release_app
from coordinator.commands.rollout import rollout_app
from coordinator.commands.task import task_app
from coordinator.commands.token import token_app
from coordinator.commands.trust import key_app, root_app
from coordinator.config import CoordinatorConfig
from edge_sdk.command import run as run_command
from edge_sdk.command import with_version
from edge_sdk.logs import LogFormat, log_to_stderr
from edge_sdk.settings_help import ABOUT
from edge_sdk.transport.address import MqttVersion

if TYPE_CHECKING:
    from coordinator.service import Service

app = typer.Typer(
    callback=with_version, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__
)
round_app = typer.Typer(no_args_is_help=True, help="What was trained.")
store_app = typer.Typer(no_args_is_help=True, help="Where all of it is kept.")
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
        str | None, typer.Option(help="mqtt://host:port, or mqtts://host:port; default: as `fleet init` says.")
    ] = None,
    fleet: Annotated[str | None, typer.Option(help="The fleet's name; default: as `fleet init` says.")] = None,
    threads: Annotated[int, typer.Option(help="For salience and evaluation.")] = 2,
    exit_when_done: Annotated[bool, typer.Option("--exit-when-done", help="End once every task has ended.")] = False,
    tasks_at_once: Annotated[int, typer.Option(min=1, help="Tasks that run side by side; others wait.")] = 4,
    user: Annotated[str | None, typer.Option(help=ABOUT["user"])] = None,
    password_file: Annotated[Path | None, typer.Option(help=ABOUT["password_file"])] = None,
    ca_file: Annotated[Path | None, typer.Option(help=ABOUT["ca_file"])] = None,
    certificate_file: Annotated[
        Path | None, typer.Option(help="Certificate to show the broker; default: that of `fleet init`.")
    ] = None,
    key_file: Annotated[Path | None, typer.Option(help=ABOUT["key_file"])] = None,
    allow_plaintext: Annotated[bool, typer.Option(help=ABOUT["allow_plaintext"])] = False,
    mqtt_version: Annotated[MqttVersion, typer.Option(help=ABOUT["mqtt_version"])] = MqttVersion.ANY,
    blob_url: Annotated[
        str | None,
        typer.Option(help="https://… under which a web server shows the blobs folder; else they go over MQTT."),
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Show its own metrics to Prometheus on 127.0.0.1 there.")
    ] = None,
    log_format: Log = LogFormat.TEXT,
) -> None:
    """Serve a fleet: run its tasks, until interrupted."""
    from coordinator.fleet.folder import link_of
    from coordinator.service import Service, mqtt_transport
    from coordinator.store.opening import sole_user
    from coordinator.store.outage import SERVING_PATIENCE_S
    from edge_sdk.security.secrets import read_secret

    log_to_stderr("coordinator", log_format)
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
    task: Annotated[str | None, typer.Option(help="Of this task only.")] = None,
    as_json: AsJson = False,
) -> None:
    """Every round: who took part, how good the result is, what it cost."""
    from coordinator.listing import round_rows, show

    show(round_rows(open_store(state_dir), task), as_json=as_json)


@app.command()
def api(
    state_dir: StateDir,
    host: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Default: as `fleet init` says, or 8080.")] = None,
    certificate: Annotated[
        Path | None, typer.Option(help="PEM, with the chain; default: one of the fleet's authority, where it has one.")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="PEM, of the certificate.")] = None,
    allow_plaintext: Annotated[bool, typer.Option(help="Serve plain HTTP, off this machine too.")] = False,
    requests_per_minute: Annotated[
        int, typer.Option(min=0, help="Of one client, and with one token, as a bucket that holds a minute's; 0: any.")
    ] = 1200,
    failures_per_minute: Annotated[
        int, typer.Option(min=0, help="Wrong tokens of one client, at the API, the log-in and enrolling; 0: any.")
    ] = 10,
    log_format: Log = LogFormat.TEXT,
    dashboard: Annotated[bool, typer.Option(help="Serve the dashboard beside it, at /dashboard.")] = True,
) -> None:
    """Serve the REST API and the dashboard, until interrupted; `coordinator token create` lets one in to both."""
    from coordinator.api.app import create_app
    from coordinator.api.limiting import Limits
    from coordinator.api.serving import Listening, serve_api
    from coordinator.fleet.folder import open_fleet
    from coordinator.store.opening import staying
    from coordinator.store.outage import ASKING_PATIENCE_S

    log_to_stderr("coordinator", log_format)
    listening = Listening.of(open_fleet(state_dir), host, port, certificate, key, allow_plaintext=allow_plaintext)
    with staying(state_dir), closing(open_store(state_dir, ASKING_PATIENCE_S)) as store:
        limits = Limits(requests_per_minute, failures_per_minute)
        served, path = create_app(store, state_dir, limits), None
        if dashboard:
            from coordinator.dashboard.app import add_dashboard

            path = add_dashboard(served, store, state_dir)
        serve_api(served, listening, path)


@app.command()
def audit(
    state_dir: StateDir,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of entries.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Who has changed what, newest first."""
    from coordinator.listing import audit_rows, show

    show(audit_rows(open_store(state_dir), limit), as_json=as_json)


@store_app.command("move")
def move(
    state_dir: StateDir,
    url: Annotated[str, typer.Argument(help="postgresql://user@host/name of an empty database.")],
) -> None:
    """Copy the store to another database, where it lies from then on; the coordinator and its API must have ended."""
    from coordinator.store.opening import move_store

    rows = move_store(state_dir, url)
    typer.echo(f"{rows} rows are copied; every command with --state-dir {state_dir} works there from now on")


@app.command()
def backup(
    file: Annotated[Path, typer.Argument(help="File to write, a tar. It has the coordinator's keys: keep it secret.")],
    state_dir: StateDir,
) -> None:
    """Copy all that the coordinator is into one file; it may serve meanwhile."""
    from coordinator.backup import back_up

    typer.echo(f"{file} has the store, the keys and {back_up(state_dir, file)} blobs")


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(help="A backup.")],
    state_dir: StateDir,
) -> None:
    """Make a new state folder what another was when it was backed up."""
    from coordinator.backup import restore as restored

    typer.echo(f"{state_dir} has the store, the keys and {restored(file, state_dir)} blobs of {file}")


@app.command()
def demo(
    state_dir: Annotated[Path, typer.Option(help="Folder for everything that the demo makes.")] = Path("demo-state"),
    model: Annotated[Path | None, typer.Option(help="A text encoder or decoder instead of MiniLM-L6.")] = None,
    data: Annotated[Path | None, typer.Option(help="CSV with the columns text and label instead of BBC News.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Of each of the two runs.")] = 5,
    seed: Annotated[int, typer.Option(help="Of the split over the devices.")] = 0,
    compare: Annotated[bool, typer.Option(help="Also run with only the able devices.")] = True,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last closed round.")] = False,
    report: Annotated[Path, typer.Option(help="Where the page with the plots goes.")] = Path("report.html"),
) -> None:
    """The main job on this machine: eight unequal devices train one model and get a larger one back."""
    from coordinator.demo.main import DemoOptions, run_demo

    run_demo(DemoOptions(state_dir, model, data, rounds, seed, compare, resume, report))


def main() -> None:
    """Run the command; a user's mistake ends in one line and a documented exit code."""
    run_command(app, "coordinator", "pip install 'raffm-edge[coordinator]'")


if __name__ == "__main__":
    main()
