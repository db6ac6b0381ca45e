"""The Debian package: built, taken apart, and its agent run by the system's Python from where it was unpacked."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edge_sdk.service.debian.build import Package, control_text

ROOT = Path(__file__).parents[3]
SYSTEM_PYTHON = Path("/usr/bin/python3")
PACKAGE = Package(architecture="arm64", python=(3, 11), size_kib=1000)


def test_package_asks_for_the_python_that_its_compiled_parts_fit() -> None:
    fields = dict(line.split(": ", 1) for line in control_text(PACKAGE).splitlines() if not line.startswith(" "))
    assert fields["Depends"].startswith("python3 (>= 3.11~), python3 (<< 3.12~), ")
    assert (fields["Architecture"], fields["Installed-Size"]) == ("arm64", "1000")
    assert PACKAGE.file_name.endswith("_arm64.deb")


@pytest.mark.parametrize("name", ["postinst", "prerm", "postrm"])
def test_script_of_the_package_is_one(name: str) -> None:
    subprocess.run(["sh", "-n", ROOT / "edge_sdk/service/debian" / name], check=True)


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as dpkg lays it out, built of this checkout."""
    if shutil.which("dpkg-deb") is None or not SYSTEM_PYTHON.exists():
        pytest.skip("no dpkg-deb and /usr/bin/python3: not a Debian")
    folder = tmp_path_factory.mktemp("deb")
    command = [sys.executable, "-m", "edge_sdk.service.debian.build", "--folder", folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    subprocess.run(["dpkg-deb", "--extract", done.stdout.strip(), folder / "root"], check=True)
    return folder / "root"


def agent(root: Path, *words: str) -> str:
    command = [root / "opt/raffm-edge/bin/python", "-m", "edge_sdk.cli", *words]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=root, env=environment).stdout


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_agent_runs_from_the_package(unpacked: Path) -> None:
    assert "service" in agent(unpacked, "--help")
    assert '"profile": "raspberry-pi-4-2gb"' in agent(unpacked, "profile", "--profile", "raspberry-pi-4-2gb", "--json")


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_package_holds_what_systemd_needs_and_no_trace_of_where_it_was_built(unpacked: Path) -> None:
    unit = (unpacked / "lib/systemd/system/raffm-edge.service").read_text()
    assert "ExecStart=/opt/raffm-edge/bin/edge-agent run --config /etc/raffm-edge/agent.toml\n" in unit
    assert (unpacked / "usr/lib/sysusers.d/raffm-edge.conf").read_text().startswith("u raffm-edge ")
    assert "#device =" in (unpacked / "etc/raffm-edge/agent.toml").read_text()
    built = str(unpacked.parent).encode()
    assert not [path for path in unpacked.rglob("*") if path.is_file() and built in path.read_bytes()]
