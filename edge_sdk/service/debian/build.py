"""Builds the .deb: `make deb`, or `python -m edge_sdk.service.debian.build --help`."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from edge_sdk import __version__
from edge_sdk.errors import RaffmError, StorageError
from edge_sdk.service.debian.slim import remove_unused_files, unused_distributions
from edge_sdk.service.unit import NAME, UNIT, Unit, sysusers_text, tmpfiles_text, unit_text
from edge_sdk.settings import example_file

HOME = Path("/opt") / NAME
CONFIG = Path("/etc") / NAME / "agent.toml"
_EXTRAS = ("images", "parquet")
_SCRIPTS = ("postinst", "prerm", "postrm")
_HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """What the package's control file says; ``python`` is (major, minor), ``size_kib`` what it takes when unpacked."""

    architecture: str
    python: tuple[int, int]
    size_kib: int

    @property
    def file_name(self) -> str:
        """The name that dpkg expects."""
        return f"{NAME}_{__version__}_{self.architecture}.deb"


def control_text(package: Package) -> str:
    """The text of DEBIAN/control. Compiled extensions fit one Python version, so the package depends on it."""
    major, minor = package.python
    return f"""Package: {NAME}
Version: {__version__}
Architecture: {package.architecture}
Maintainer: raffm-edge maintainers <raffm-edge@localhost>
Section: science
Priority: optional
Installed-Size: {package.size_kib}
Depends: python3 (>= {major}.{minor}~), python3 (<< {major}.{minor + 1}~), python3-minimal, systemd, init-system-helpers
Description: agent that trains and runs the part of a model that fits this device
 A device agent for elastic federated learning of transformers over MQTT, as a
 confined systemd service. It carries its own Python libraries in {HOME}.
"""


def stage(tree: Path, python: Path, source: str, constraints: Path) -> None:
    """Lay out under ``tree`` all files for the board; ``source`` is a checkout or a wheel, and may name extras.

    Raises ``StorageError`` if a command fails.
    """
    _make_environment(tree, python, source, constraints)
    command = (str(HOME / "bin/edge-agent"),)
    texts = {
        CONFIG: example_file(),
        Path("/lib/systemd/system") / UNIT: unit_text(Unit(command=command, config=CONFIG)),
        Path(f"/usr/lib/sysusers.d/{NAME}.conf"): sysusers_text(),
        Path(f"/usr/lib/tmpfiles.d/{NAME}.conf"): tmpfiles_text(),
    }
    for path, text in texts.items():
        _write(_under(tree, path), text)
    link = tree / "usr/bin/edge-agent"
    link.parent.mkdir(parents=True)
    link.symlink_to(HOME / "bin/edge-agent")


def build(tree: Path, package: Package, folder: Path) -> Path:
    """Build the .deb in ``folder`` from what is staged under ``tree``; its path. Raises ``StorageError``."""
    _write(tree / "DEBIAN/control", control_text(package))
    _write(tree / "DEBIAN/conffiles", f"{CONFIG}\n")
    for name in _SCRIPTS:
        _write(tree / "DEBIAN" / name, (_HERE / name).read_text(encoding="utf-8"), mode=0o755)
    target = folder / package.file_name
    _run("dpkg-deb", "--root-owner-group", "-Zxz", "-z1", "--build", tree, target)
    return target


def _make_environment(tree: Path, python: Path, source: str, constraints: Path) -> None:
    """A virtual environment with what an agent uses and one command, whose scripts assume that it lies in ``HOME``."""
    folder = _under(tree, HOME)
    _run(python, "-m", "venv", "--without-pip", folder)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "--python", folder / "bin/python")
    _run(*pip, "install", "--no-compile", "-c", constraints, source)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    _run(*pip, "uninstall", "--yes", *unused_distributions(site_packages))
    remove_unused_files(site_packages)
    for script in (folder / "bin").iterdir():
        if not script.name.startswith("python") and script.name != "edge-agent":
            script.unlink()
    _write(folder / "bin/edge-agent", _LAUNCHER, mode=0o755)
    for record in folder.rglob("direct_url.json"):  # the path on the machine that built it
        record.unlink()
    settings = folder / "pyvenv.cfg"
    settings.write_text(settings.read_text(encoding="utf-8").replace(str(tree.resolve()), "").replace(str(tree), ""))
    # compiled here, as the service may not write there; checked against no source, whose times differ on the board
    compiled = ("compileall", "-q", "-s", tree, "-p", "/", "--invalidation-mode", "unchecked-hash")
    _run(folder / "bin/python", "-m", *compiled, folder / "lib")


_LAUNCHER = f"""#!{HOME}/bin/python
from edge_sdk.cli import main

main()
"""


def _version_of(python: Path) -> tuple[int, int]:
    major, minor = _run(python, "-c", "import sys; print(*sys.version_info[:2])").split()
    return int(major), int(minor)


def _under(tree: Path, path: Path) -> Path:
    return tree / path.relative_to("/")


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)


def _run(*words: str | Path) -> str:
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except OSError as error:
        raise StorageError(
            f"{words[0]} cannot be run ({error.strerror}): a .deb is built on Debian, with venv"
        ) from error
    if done.returncode:
        raise StorageError(f"{words[0]} {words[1]} {words[2]} failed: {done.stderr.strip()[-300:]}")
    return done.stdout


def _extras(words: str) -> str:
    """As pip takes them behind a name; pip itself passes over those that it does not know."""
    if unknown := set(words.split(",")) - {"", *_EXTRAS}:
        raise argparse.ArgumentTypeError(f"{min(unknown)!r} is not one of {', '.join(_EXTRAS)}")
    return f"[{words}]" if words else ""


def main() -> None:
    """Stage and build; print where the package lies."""
    parser = argparse.ArgumentParser(prog="make deb", description=__doc__)
    parser.add_argument(
        "--python", type=Path, default=Path("/usr/bin/python3"), help="the Python of the board's Debian"
    )
    parser.add_argument("--source", type=Path, default=Path(), help="a checkout or a wheel")
    parser.add_argument(
        "--extras", type=_extras, default="", help="what else it reads: images, parquet, or both with a comma"
    )
    parser.add_argument("--constraints", type=Path, default=Path(".ci/constraints.txt"), help="the pinned versions")
    parser.add_argument("--folder", type=Path, default=Path("build"), help="where the package goes")
    given = parser.parse_args()
    tree = given.folder.resolve() / "deb"
    shutil.rmtree(tree, ignore_errors=True)
    try:
        stage(tree, given.python, f"{given.source.resolve()}{given.extras}", given.constraints)
        size_kib = sum(file.lstat().st_size for file in tree.rglob("*")) >> 10
        architecture = _run("dpkg", "--print-architecture").strip()
        package = Package(architecture=architecture, python=_version_of(given.python), size_kib=size_kib)
        sys.stdout.write(f"{build(tree, package, given.folder)}\n")
    except RaffmError as error:
        sys.stderr.write(f"make deb: {error}\n")
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
