"""The Debian package: built, taken apart, and its agent run by the system's Python from where it was unpacked."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edge_sdk.service.debian.build import Package, control_text
from edge_sdk.service.debian.slim import remove_unused_files, unused_distributions

ROOT = Path(__file__).parents[3]
SYSTEM_PYTHON = Path("/usr/bin/python3")
IMPORT_ALL = """
import importlib, pkgutil, edge_sdk
for module in pkgutil.walk_packages(edge_sdk.__path__, "edge_sdk."):
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        print(error.name, module.name)
"""
PACKAGE = Package(architecture="arm64", python=(3, 11), size_kib=1000)


def test_package_asks_for_the_python_that_its_compiled_parts_fit() -> None:
    fields = dict(line.split(": ", 1) for line in control_text(PACKAGE).splitlines() if not line.startswith(" "))
    assert fields["Depends"].startswith("python3 (>= 3.11~), python3 (<< 3.12~), ")
    assert (fields["Architecture"], fields["Installed-Size"]) == ("arm64", "1000")
    assert PACKAGE.file_name.endswith("_arm64.deb")


@pytest.mark.parametrize("name", ["postinst", "prerm", "postrm"])
def test_script_of_the_package_is_one(name: str) -> None:
    subprocess.run(["sh", "-n", ROOT / "edge_sdk/service/debian" / name], check=True)


def installed(site_packages: Path, required: dict[str, list[str]]) -> None:
    for name, names in required.items():
        metadata = site_packages / f"{name}-1.0.dist-info" / "METADATA"
        metadata.parent.mkdir(parents=True)
        requires = "".join(f"Requires-Dist: {one}\n" for one in names)
        metadata.write_text(f"Metadata-Version: 2.4\nName: {name}\nVersion: 1.0\n{requires}", encoding="utf-8")


def test_package_leaves_out_the_hubs_client_and_what_it_alone_requires(tmp_path: Path) -> None:
    required = {
        "raffm_edge": ["tokenizers>=0.21", "rich", "pillow>=10; extra == 'images'"],
        "tokenizers": ["Huggingface_Hub>=0.16", "pytest; extra == 'testing'"],
        "huggingface_hub": ["tqdm", "filelock", "rich"],
        "rich": ["pygments<3; python_version > '3'"],
        "filelock": ["tqdm"],
        "pytest": [],
        "tqdm": [],
        "pillow": [],
        "pygments": [],
    }
    installed(tmp_path, required)
    assert unused_distributions(tmp_path) == ["filelock", "huggingface-hub", "pytest", "tqdm"]


def test_package_leaves_out_tests_and_the_coordinator(tmp_path: Path) -> None:
    names = ("coordinator/cli.py", "numpy/_core/tests/test_a.py", "numpy/tests/test_b.py", "numpy/a.pyi", "numpy/a.py")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    remove_unused_files(tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.py*")] == ["numpy/a.py"]


def test_extra_that_is_none_is_refused() -> None:
    command = [sys.executable, "-m", "edge_sdk.service.debian.build", "--extras", "images,pictures"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "'pictures' is not one of images, parquet" in done.stderr


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


def python(root: Path, *words: str) -> str:
    command = [root / "opt/raffm-edge/bin/python", *words]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=root, env=environment).stdout


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_agent_runs_from_the_package(unpacked: Path) -> None:
    assert "service" in python(unpacked, "-m", "edge_sdk.cli", "--help")
    profile = python(unpacked, "-m", "edge_sdk.cli", "profile", "--profile", "raspberry-pi-4-2gb", "--json")
    assert '"profile": "raspberry-pi-4-2gb"' in profile


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_all_that_the_agent_imports_is_in_the_package_but_torch(unpacked: Path) -> None:
    missing = python(unpacked, "-c", IMPORT_ALL).splitlines()
    assert {line.split()[0] for line in missing} == {"peft", "torch"}
    assert {line.split()[1].rpartition(".")[0] for line in missing} == {"edge_sdk.modules", "edge_sdk.training"}
    unused = python(unpacked, "-c", "import importlib.util as u; print(*map(u.find_spec, ('coordinator', 'hf_xet')))")
    assert unused.split() == ["None", "None"]


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_package_holds_what_systemd_needs_and_no_trace_of_where_it_was_built(unpacked: Path) -> None:
    unit = (unpacked / "lib/systemd/system/raffm-edge.service").read_text()
    assert "ExecStart=/opt/raffm-edge/bin/edge-agent run --config /etc/raffm-edge/agent.toml\n" in unit
    assert (unpacked / "usr/lib/sysusers.d/raffm-edge.conf").read_text().startswith("u raffm-edge ")
    assert "#device =" in (unpacked / "etc/raffm-edge/agent.toml").read_text()
    built = str(unpacked.parent).encode()
    assert not [path for path in unpacked.rglob("*") if path.is_file() and built in path.read_bytes()]
