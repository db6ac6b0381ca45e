"""The SDK's own tests on 64-bit Arm, emulated: `make test-arm`.

Debian's Python and mosquitto for arm64 and the wheels of the base installation go into build/, and the tests of a copy
of this tree without ``coordinator/`` run there, on qemu's Cortex-A72: the processor of a Raspberry Pi 4. What is left
out is tests of memory, since a process has the emulator's too and no limit of its own is kept, and one of speed.

Needs root, a kernel with binfmt_misc, and `apt install mmdebstrap qemu-user-static binfmt-support`. Words go to pytest.
Exit code 1 where a test fails, 2 where something is missing.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.every_python import PYTEST, ROOT, copy_tree, is_pass, last_line, pins

BUILD = ROOT / "build" / "test-arm"
SYSTEM = BUILD / "root"
_SUITE, _PYTHON = "bookworm", "3.11"
_SYSTEM = ("base-files", "base-passwd", "ca-certificates", "coreutils", "dash", "grep", "libc-bin", "procps", "sed")
_PACKAGES = ",".join((*_SYSTEM, "libstdc++6", "mosquitto", "openssl", "python3"))
_HOOKS = "/usr/share/mmdebstrap/hooks/merged-usr"
_GLIBC = range(17, 37)  # the last digits of those that wheels may have been built against
_EMULATOR = Path("/proc/sys/fs/binfmt_misc/qemu-aarch64")
_LEFT_OUT = (
    "tests/contract/test_slow_link.py::test_transfer_uses_nine_tenths_of_a_slow_link",
    "tests/unit/training/test_training_process.py::test_worker_out_of_memory_has_the_documented_exit_status",
    "tests/unit/training/test_training_process.py::test_worker_peak_is_resident_memory_and_small",
)
_CORE = """processor\t: {number}
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3

"""  # without it onnxruntime reads the host's, and crashes


def main(words: Sequence[str]) -> int:
    """Run the tests, return the exit code."""
    if (missing := _missing()) is not None:
        print(missing)
        return 2
    _make_system()
    copy_tree(SYSTEM / "tree")
    return 0 if is_pass(_run(words)) else 1


def _missing() -> str | None:
    if os.geteuid() != 0:
        return "root is needed, to run in another root folder"
    if shutil.which("mmdebstrap") is None:
        return "mmdebstrap is not here: apt install mmdebstrap"
    if not _EMULATOR.exists():
        return f"no {_EMULATOR}, the kernel's way to qemu: apt install qemu-user-static binfmt-support"
    return None


def _make_system() -> None:
    """What the tests need of Debian, unpacked alone, and of the package index; anew when what it holds changes."""
    stamp, wanted = BUILD / "installed", pins() + _PACKAGES
    if stamp.exists() and stamp.read_text() == wanted:
        return
    shutil.rmtree(BUILD, ignore_errors=True)
    BUILD.mkdir(parents=True)
    options = [
        "--quiet",
        "--variant=extract",
        "--arch=arm64",
        f"--hook-dir={_HOOKS}",
        f"--include={_PACKAGES}",
    ]
    subprocess.run(["mmdebstrap", *options, _SUITE, SYSTEM], check=True)
    for name in ("passwd", "group"):
        shutil.copy(SYSTEM / "usr/share/base-passwd" / f"{name}.master", SYSTEM / "etc" / name)
    for number in range(os.cpu_count() or 1):
        with (BUILD / "cpuinfo").open("a") as file:
            file.write(_CORE.format(number=number))
    _install(SYSTEM / "site")
    stamp.write_text(wanted)


def _install(folder: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", BUILD, ROOT], check=True)
    platforms = [f"--platform=manylinux_2_{minor}_aarch64" for minor in _GLIBC] + ["--platform=manylinux2014_aarch64"]
    wanted = [*platforms, f"--python-version={_PYTHON}", "--only-binary=:all:", "-c", ROOT / ".ci/constraints.txt"]
    package = f"{next(BUILD.glob('*.whl'))}[test]"
    subprocess.run([*pip, "install", "--target", folder, *wanted, package], check=True)
    for name in ("edge_sdk", "coordinator", "device_profiles"):  # those of the tree are meant
        shutil.rmtree(folder / name)


def _run(words: Sequence[str]) -> str:
    """In mounts of its own, which go with it."""
    left_out = [f"--deselect={test}" for test in _LEFT_OUT]
    tests = shlex.join(["python3", *PYTEST, *left_out, *words])
    steps = [
        f"mount --rbind /proc {SYSTEM}/proc",
        f"mount --bind {BUILD}/cpuinfo {SYSTEM}/proc/cpuinfo",
        f"mount --rbind /dev {SYSTEM}/dev",
        f"exec chroot {SYSTEM} sh -c {shlex.quote(f'cd /tree && exec {tests}')}",
    ]
    environment = {
        "HOME": "/root",
        "PATH": "/usr/bin:/bin:/usr/sbin:/sbin",
        "PYTHONPATH": "/tree:/site",
        "QEMU_CPU": "cortex-a72",
        "CI": os.environ.get("CI", ""),
    }
    return last_line(["unshare", "--mount", "sh", "-ec", "\n".join(steps)], env=environment)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
