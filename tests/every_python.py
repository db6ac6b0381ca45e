"""The SDK's own tests on every Python that is here: `make test-all`.

Each Python from 3.10 to 3.13, on PATH or under ~/.pyenv, gets a virtual environment in build/: the base installation
and tools of testing, pinned, of a copy of this tree without ``coordinator/``. Words name the versions that are wanted,
otherwise all that are found. Exit code 1 where a test fails, 2 where a version that is named is not here.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

VERSIONS = ("3.10", "3.11", "3.12", "3.13")
ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "test-all"
COPIED = ("edge_sdk", "device_profiles", "tests", ".ci", "pyproject.toml", "README.md", "LICENSE")
PYTEST = ("-m", "pytest", "--base", "-q", "-p", "no:cacheprovider", "-n", "2", "--dist", "loadgroup")


def main(wanted: Sequence[str]) -> int:
    """Run the tests on each of ``wanted``, print a line for each at the end, return the exit code."""
    missing = [version for version in wanted if interpreter(version) is None]
    if missing:
        print(f"Python {', '.join(missing)} is not here: put python{missing[0]} on PATH")
        return 2
    copy_tree(BUILD / "tree")
    ends = {version: _run(version, found) for version in wanted or VERSIONS if (found := interpreter(version))}
    for version in wanted or VERSIONS:
        print(f"Python {version}: {ends.get(version, 'not here')}")
    return 0 if ends and all(map(is_pass, ends.values())) else 1


def interpreter(version: str) -> Path | None:
    """The interpreter of this version, such as 3.12, the newest of pyenv's where PATH has none that runs."""
    folders = sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin"), key=_numbers, reverse=True)
    on_path = shutil.which(f"python{version}")
    for candidate in (*((Path(on_path),) if on_path else ()), *(folder / f"python{version}" for folder in folders)):
        if subprocess.run([candidate, "-c", "import ensurepip"], capture_output=True, check=False).returncode == 0:
            return candidate
    return None


def copy_tree(folder: Path) -> None:
    """What a device gets and its tests, without the coordinator."""
    shutil.rmtree(folder, ignore_errors=True)
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, folder)


def last_line(command: Sequence[str | Path], **how: Any) -> str:
    """What ``command``, which runs tests, prints last; all that it prints is shown."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **how) as tests:
        lines = [line for line in tests.stdout or () if not print(line, end="", flush=True)]
    return lines[-1].strip() if lines else f"no tests ran, exit status {tests.returncode}"


def is_pass(end: str) -> bool:
    """Whether pytest's last line says that all that ran has passed."""
    return "passed" in end and "failed" not in end and "error" not in end


def _run(version: str, interpreter: Path) -> str:
    python = _environment(version, interpreter)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    print(f"Python {version}, {interpreter}", flush=True)
    return last_line([python, *PYTEST], cwd=BUILD / "tree", env=environment)


def _environment(version: str, interpreter: Path) -> Path:
    """The virtual environment's interpreter; it is made anew when what it holds changes."""
    folder, wanted = BUILD / f"python{version}", pins()
    stamp = folder / "installed"
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([interpreter, "-m", "venv", folder], check=True)
        pip = [folder / "bin/python", "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
        subprocess.run([*pip, "-c", ROOT / ".ci/constraints.txt", "-e", f"{BUILD / 'tree'}[test]"], check=True)
        stamp.write_text(wanted)
    return folder / "bin" / "python"


def pins() -> str:
    """All that decides which packages the tests get."""
    return (ROOT / "pyproject.toml").read_text() + (ROOT / ".ci" / "constraints.txt").read_text()


def _numbers(folder: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", folder.parent.name)]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
