"""`edge-agent service`: the agent under systemd."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge_sdk.command import AsJson, waiting

if TYPE_CHECKING:
    from edge_sdk.service.install import Places
    from edge_sdk.service.systemd import Systemd

app = typer.Typer(no_args_is_help=True, help="Run the agent as a systemd service, of this machine or of your user.")

Own = Annotated[
    bool | None,
    typer.Option("--user/--system", help="Your user's service, or the system's; default: the system's for root."),
]


@app.command()
def install(
    config: Annotated[Path | None, typer.Option(help="TOML settings file that the service runs with.")] = None,
    own: Own = None,
    memory_max_mib: Annotated[
        int | None, typer.Option(help="Memory limit in MiB; default: the profile's, read at each start.", min=64)
    ] = None,
    cpu_percent: Annotated[
        int | None,
        typer.Option(help="Processor limit, 100 per core; default: the profile's, read at each start.", min=1),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the unit and change nothing.")] = False,
) -> None:
    """Install and enable the unit, so that it starts at boot; write a first settings file if there is none."""
    from edge_sdk.service.following import drop_in_text
    from edge_sdk.service.install import install, unit_for
    from edge_sdk.service.unit import unit_text

    places = _places(own)
    unit = unit_for(config or places.config, own=places.own, memory_mib=memory_max_mib, cpu=cpu_percent)
    if dry_run:
        text = unit_text(unit)
        typer.echo(f"{text}\n# {places.drop_in}\n{drop_in_text(text)}", nl=False)
        return
    configured = install(unit, places, _systemd(own))
    typer.echo(f"installed {places.unit}; it starts at boot")
    typer.echo(f"settings: {unit.config}" + ("" if configured else " (a template: fill in the required keys)"))
    typer.echo("next: edge-agent service start")
    if places.own:
        typer.echo("it ends when you log out, unless you run `loginctl enable-linger`")


@app.command()
def start(own: Own = None) -> None:
    """Start the service with its current settings, and wait until the agent is connected to its broker."""
    _control("start", own)


@app.command()
def restart(own: Own = None) -> None:
    """Stop the service if it runs, and start it with its current settings."""
    _control("restart", own)


@app.command()
def stop(own: Own = None) -> None:
    """Stop the service until it is started again or the machine boots."""
    from edge_sdk.service.unit import UNIT

    with waiting("waiting until the agent has ended"):
        _systemd(own).control("stop", UNIT)


@app.command()
def status(own: Own = None, as_json: AsJson = False) -> None:
    """Show whether the service runs, and what the agent reports that it is doing."""
    import msgspec

    state = _systemd(own).state()
    if as_json:
        typer.echo(msgspec.json.encode(state).decode())
        return
    for name, value in state.items():
        typer.echo(f"{name:14} {value}")


@app.command()
def logs(
    own: Own = None,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="How many of the latest lines to print.")] = 50,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep printing new lines.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print the agent's log; as JSON, one object per line with the journal's fields."""
    raise typer.Exit(_systemd(own).logs(lines=lines, follow=follow, as_json=as_json))


@app.command()
def uninstall(own: Own = None) -> None:
    """Stop the service and remove its unit; settings and state are kept."""
    from edge_sdk.service.install import uninstall

    places = _places(own)
    uninstall(places, _systemd(own))
    typer.echo(f"removed {places.unit}; {places.config} and the state are kept")


def _control(verb: str, own: bool | None) -> None:
    from edge_sdk.service.install import follow_settings
    from edge_sdk.service.unit import UNIT

    systemd = _systemd(own)
    follow_settings(_places(own), systemd)
    with waiting("waiting until the agent is connected"):
        systemd.control(verb, UNIT)


def _places(own: bool | None) -> Places:
    from edge_sdk.service.install import Places, is_root

    return Places(own=not is_root() if own is None else own)


def _systemd(own: bool | None) -> Systemd:
    from edge_sdk.service.systemd import Systemd

    return Systemd(own=_places(own).own)
