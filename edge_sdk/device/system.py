"""How this package reads the machine: files below a root folder, and commands that may be absent.

``root`` is ``/`` on a real machine; a test passes a small tree of files instead. Nothing here needs root's rights.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

_T = TypeVar("_T")
_COMMAND_S = 2.0
_MAX_DIGITS = 19  # of a 64-bit number: no kernel writes more


@dataclass(frozen=True, slots=True)
class System:
    """One machine. Whatever is absent, forbidden or not as expected reads as ``None``."""

    root: Path = Path("/")

    def text(self, path: str) -> str | None:
        """The text of a small file, without surrounding white space and NULs (which end a device tree's strings)."""
        try:
            return (self.root / path).read_text(encoding="utf-8", errors="replace").strip("\0 \t\r\n")
        except OSError:  # a file in sysfs may exist and refuse, such as the sensor of a part that is switched off
            return None

    def number(self, path: str) -> int | None:
        """The whole number that a file holds."""
        return whole(self.text(path))

    def matching(self, pattern: str) -> list[str]:
        """Paths that match a glob, sorted; usable with the other methods."""
        try:
            return sorted(str(path.relative_to(self.root)) for path in self.root.glob(pattern))
        except OSError:  # something was unplugged meanwhile
            return []

    def output(self, *command: str, timeout_s: float = _COMMAND_S) -> str | None:
        """What a command prints, stripped; ``None`` where it is absent, fails or takes longer than ``timeout_s``.

        On the machine's own root it is looked up on PATH, else only in ``usr/bin`` below the root.
        """
        where = None if self.root == Path("/") else str(self.root / "usr/bin")
        program = shutil.which(command[0], path=where)
        if program is None:
            return None
        try:
            done = subprocess.run(
                [program, *command[1:]],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout_s,
                check=False,
                env={**os.environ, "LC_ALL": "C.UTF-8"},  # words such as "yes" are translated otherwise
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None


def whole(text: str | None) -> int | None:
    """The whole number that a text is, ``None`` where it is none."""
    digits = "" if text is None else text.removeprefix("-")
    is_whole = digits.isascii() and digits.isdigit() and len(digits) <= _MAX_DIGITS
    return int(text) if text is not None and is_whole else None


def or_none(ask: Callable[[], _T]) -> _T | None:
    """What ``ask``, a question to psutil, returns; ``None`` where a file that psutil reads is missing or garbled."""
    import psutil  # noqa: PLC0415 - the doctor also examines a system without it

    try:
        return ask()
    except (psutil.Error, OSError, ValueError, TypeError, LookupError, ArithmeticError):
        return None
