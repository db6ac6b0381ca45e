"""The text of the agent's systemd unit; pure. For what each directive does, see systemd.service(5), systemd.exec(5).

The agent's work comes after the device's own: where others want the processor or the disk it gets a tenth of their
share (``Nice=`` alone orders processes within the service), never exceeds its limits, and may write only to its state
folder. A training process that the kernel kills for its memory is an outcome, not a failure of the service
(``OOMPolicy=continue``). A wrong setting does not become right by trying again (``RestartPreventExitStatus=2``).

Examples are read at the start, and again when they have changed. A picture of 12 megapixels takes 35 ms on a core of a
server and several times that on a board, so thousands of them take many minutes. ``TimeoutStartSec=`` must not end the
agent before, which would begin anew each time, and ``WatchdogSec=`` is as long as that.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from edge_sdk.errors import ConfigurationError

NAME = "raffm-edge"
UNIT = f"{NAME}.service"
USER = NAME
_Directives = Iterable[tuple[str, object]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """One unit. ``command`` starts `edge-agent`, with the settings file ``config``.

    ``own`` makes it a unit of the ordinary user who installs it. ``reads_home`` lets the machine's unit read /home and
    /root, if the command or the settings lie there. ``cpu_percent`` is 100 for each core.
    """

    command: tuple[str, ...]
    config: Path
    own: bool = False
    reads_home: bool = False
    memory_max_mib: int | None = None
    cpu_percent: int | None = None


def unit_text(unit: Unit) -> str:
    """The unit as systemd reads it."""
    confinement = () if unit.own else (*_account(unit), *_MACHINE)  # an ordinary user's manager has no mounts to give
    service = (*_running(unit), *_limits(unit), *confinement, *_EVERYWHERE)
    sections = {"Unit": _order(unit), "Service": service, "Install": _wanted(unit)}
    return "\n".join(f"[{name}]\n{_lines(directives)}" for name, directives in sections.items())


def config_of(unit: str) -> Path:
    """The settings file that a unit's text names. Raises ``ConfigurationError`` if it names none."""
    started = next((line for line in unit.splitlines() if line.startswith("ExecStart=")), "")
    _, option, rest = started.partition(" --config ")
    if not option:
        raise ConfigurationError(f"the unit has {started!r} without --config: run `edge-agent service install` again")
    return Path(shlex.split(rest)[0].replace("%%", "%").replace("$$", "$"))


def sysusers_text() -> str:
    """The service's own user, in the format of sysusers.d(5)."""
    return f'u {USER} - "raffm-edge agent" /var/lib/{NAME} /usr/sbin/nologin\n'


def tmpfiles_text() -> str:
    """Owners and modes of the folders and the settings file, in the format of tmpfiles.d(5)."""
    lines = (
        f"d /etc/{NAME} 0750 root {USER}",
        f"z /etc/{NAME}/agent.toml 0640 root {USER}",
        f"d /var/lib/{NAME} 0700 {USER} {USER}",
    )
    return "".join(f"{line}\n" for line in lines)


def _order(unit: Unit) -> _Directives:
    yield "Description", "raffm-edge agent: trains and runs the part of a model that fits this device"
    if not unit.own:  # a user's manager has no network target; there the restarts wait for it
        yield from (("Wants", "network-online.target"), ("After", "network-online.target"))
    yield "StartLimitIntervalSec", 0


def _running(unit: Unit) -> _Directives:
    yield "Type", "notify"
    yield "ExecStart", " ".join(map(_word, (*unit.command, "run", "--config", str(unit.config))))
    yield from (("Restart", "on-failure"), ("RestartSec", 15), ("RestartPreventExitStatus", 2))
    yield from (("TimeoutStartSec", "infinity"), ("WatchdogSec", 1800), ("TimeoutStopSec", 30), ("KillMode", "mixed"))
    yield from (("OOMPolicy", "continue"), ("Nice", 10), ("CPUWeight", 10), ("IOWeight", 10))


def _limits(unit: Unit) -> _Directives:
    if unit.memory_max_mib is None:
        yield "MemoryHigh", "75%"  # without a profile: a quarter for training, two eighths for models, and the agent
    else:
        yield "MemoryMax", f"{unit.memory_max_mib}M"
    if unit.cpu_percent is not None:
        yield "CPUQuota", f"{unit.cpu_percent}%"


def _account(unit: Unit) -> _Directives:
    yield from (("User", USER), ("Group", USER), ("StateDirectory", NAME), ("StateDirectoryMode", "0700"))
    yield from (("WorkingDirectory", f"%S/{NAME}"), ("Environment", f"RAFFM_EDGE_STATE_DIR=%S/{NAME}"))
    yield "ProtectHome", "read-only" if unit.reads_home else "yes"


def _wanted(unit: Unit) -> _Directives:
    yield "WantedBy", "default.target" if unit.own else "multi-user.target"


# psutil reads /proc/meminfo and /sys, glibc's resolver asks the kernel for addresses over netlink, and onnxruntime pins
# its threads and a training process limits its memory (@resources, which @system-service contains)
_EVERYWHERE = (
    ("UMask", "0077"),
    ("NoNewPrivileges", "yes"),
    ("LockPersonality", "yes"),
    ("MemoryDenyWriteExecute", "yes"),
    ("RestrictAddressFamilies", "AF_UNIX AF_INET AF_INET6 AF_NETLINK"),
    ("RestrictNamespaces", "yes"),
    ("RestrictRealtime", "yes"),
    ("RestrictSUIDSGID", "yes"),
    ("SystemCallArchitectures", "native"),
    ("SystemCallFilter", "@system-service"),
    ("SystemCallErrorNumber", "EPERM"),
)
_MACHINE = (
    ("ProtectSystem", "strict"),
    ("PrivateTmp", "yes"),
    ("PrivateDevices", "yes"),
    ("ProtectClock", "yes"),
    ("ProtectControlGroups", "yes"),
    ("ProtectHostname", "yes"),
    ("ProtectKernelLogs", "yes"),
    ("ProtectKernelModules", "yes"),
    ("ProtectKernelTunables", "yes"),
    ("ProtectProc", "invisible"),
    ("RemoveIPC", "yes"),
    ("CapabilityBoundingSet", ""),
    ("AmbientCapabilities", ""),
)


def _lines(directives: _Directives) -> str:
    return "".join(f"{name}={value}\n" for name, value in directives)


def _word(text: str) -> str:
    """One word of a command line, quoted so that systemd expands nothing in it."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"' if set(text) & set(" \t'\"\\;") else escaped
