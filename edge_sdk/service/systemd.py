"""systemctl and journalctl, for the machine's own manager or for a user's."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from edge_sdk.errors import ServiceManagerError
from edge_sdk.service.unit import UNIT

BOOTED = Path("/run/systemd/system")  # sd_booted(3)
_SHOWN = (
    "LoadState",
    "ActiveState",
    "SubState",
    "UnitFileState",
    "StatusText",
    "MainPID",
    "NRestarts",
    "MemoryCurrent",
)


class Systemd:
    """The machine's service manager or, with ``own``, the user's.

    Raises ``ServiceManagerError`` if systemd does not run here, that is, if the folder ``booted`` does not exist.
    """

    def __init__(self, *, own: bool, booted: Path = BOOTED) -> None:
        if not booted.is_dir() or shutil.which("systemctl") is None:
            raise ServiceManagerError(
                f"systemd does not run here ({booted} is missing): start `edge-agent run --config …` some other way"
            )
        self._scope = ("--user",) if own else ()

    def control(self, *words: str) -> str:
        """What `systemctl` prints. Raises ``ServiceManagerError``, with its reason, if it fails."""
        return answer_of("systemctl", *self._scope, *words)

    def state(self) -> dict[str, str]:
        """The service's properties, by systemd's names; see `show` in systemctl(1)."""
        return dict(
            line.split("=", 1)
            for line in self.control("show", UNIT, f"--property={','.join(_SHOWN)}").split("\n")
            if line
        )

    def logs(self, *, lines: int, follow: bool, as_json: bool = False) -> int:
        """Print the last ``lines`` of the service's log with `journalctl`, and follow it; its exit status."""
        how = [*(["--follow"] if follow else []), *(["--output", "json"] if as_json else [])]
        return _ran("journalctl", *self._scope, "--unit", UNIT, "--lines", str(lines), *how).returncode


def answer_of(tool: str, *words: str) -> str:
    """What a ``tool`` of systemd prints. Raises ``ServiceManagerError`` if it fails or is not installed."""
    done = _ran(tool, *words, is_read=True)
    if done.returncode:
        reason = done.stderr.strip().replace("\n", " ") or f"exit status {done.returncode}"
        raise ServiceManagerError(f"{tool} {' '.join(words)} failed: {reason}")
    return done.stdout


def _ran(tool: str, *words: str, is_read: bool = False) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run([tool, *words], capture_output=is_read, text=True, check=False)
    except OSError as error:
        raise ServiceManagerError(f"{tool} does not run ({error.strerror}): install all of systemd") from error
