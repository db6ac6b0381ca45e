"""The checks of ``edge-agent doctor``; each examines one part of the machine and imports what it needs by itself."""
# ruff: noqa: PLC0415 - a package that is missing must not keep the other checks from running

from __future__ import annotations

import importlib.util
import platform
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from edge_sdk.device.doctor import Check, Patient
from edge_sdk.device.system import System
from edge_sdk.diagnosis.findings import Finding, Mark
from edge_sdk.diagnosis.machine import clock, python_version, version_of
from edge_sdk.elastic.runtimes import MIB, ONNX

GIB = 1024 * MIB
_PACKAGES = ("numpy", "psutil", "msgspec", "paho.mqtt.client", "tokenizers", "cryptography", "platformdirs")
_MIN_TRAINING_BYTES = ONNX.base_bytes  # a training process before its first parameter
_GOOD_TRAINING_BYTES = 2 * ONNX.base_bytes
_SMALL_GROUP_BYTES = 512 * MIB
_SLOW_GFLOPS = 1.0
_IMPORT_S = 60.0  # from a slow card, on a small board
_CUDA = "CUDAExecutionProvider"  # what `edge_sdk.sessions` prefers, which loads onnxruntime


def word_size(_: Patient) -> Iterator[Finding]:
    """A 32-bit system, or a 32-bit Python on a 64-bit kernel, has no onnxruntime."""
    what = f"{platform.system()} {platform.machine()}"
    if sys.maxsize > 2**32:
        linux = platform.system() == "Linux"
        advice = "" if linux else "memory is limited and measured on Linux only: watch it yourself"
        yield Finding("system", Mark.OK if linux else Mark.WARNING, f"{what}, 64-bit", advice)
    else:
        advice = "onnxruntime has no wheels for 32-bit ARM or x86: install a 64-bit system"
        yield Finding("system", Mark.FAILURE, f"{what}, 32-bit Python", advice)


def packages(_: Patient) -> Iterator[Finding]:
    """The packages that the agent imports; tried in another process, since a wheel for another processor kills it."""
    broken = () if _imports(", ".join(_PACKAGES)) else [name for name in _PACKAGES if not _imports(name)]
    advice = f"pip install --force-reinstall {' '.join(name.partition('.')[0] for name in broken)}" if broken else ""
    found = f"cannot be imported: {', '.join(broken)}" if broken else f"{len(_PACKAGES)} packages can be imported"
    yield Finding("packages", Mark.FAILURE if broken else Mark.OK, found, advice)


def onnxruntime(_: Patient) -> Iterator[Finding]:
    """Onnxruntime, which trains and predicts, and its execution providers."""
    from edge_sdk.device.accelerator import onnxruntime_providers

    providers = onnxruntime_providers()
    if providers is not None:
        yield Finding("onnxruntime", Mark.OK, f"{version_of('onnxruntime')}: {', '.join(providers)}")
    elif importlib.util.find_spec("onnxruntime") is None:
        yield Finding("onnxruntime", Mark.FAILURE, "not installed", "pip install onnxruntime")
    else:
        advice = "try it: python -c 'import onnxruntime'; an old processor may need an older onnxruntime"
        yield Finding("onnxruntime", Mark.FAILURE, "installed, but cannot be imported", advice)


def torch(_: Patient) -> Iterator[Finding]:
    """Torch, which only ``--runtime torch`` needs."""
    missing = importlib.util.find_spec("torch") is None
    found = "not installed, and not needed" if missing else f"{version_of('torch')}: --runtime torch can be used"
    yield Finding("torch", Mark.OK, found)


def speed(patient: Patient) -> Iterator[Finding]:
    """The speed of a matrix product, and what holds it back."""
    from edge_sdk.device.processor import GEMM_S, cpu_model, is_throttled, measure_speed, usable_cores

    measured = measure_speed(patient.system, GEMM_S)
    slow = measured.gflops < _SLOW_GFLOPS
    what = f"{cpu_model(patient.system) or 'unknown processor'}, {usable_cores(patient.system)} cores"
    advice = "a busy machine, or a numpy without a fast BLAS: pip install --force-reinstall numpy" if slow else ""
    yield Finding("speed", Mark.WARNING if slow else Mark.OK, f"{what}, {measured.gflops:.1f} GFLOP/s", advice)
    if is_throttled(patient.system, measured.clock_share):
        advice = "use the power supply that the board needs, and cool the board"
        yield Finding(
            "throttling",
            Mark.WARNING,
            "the CPU is throttled: by heat, a weak power supply or a power mode",
            advice,
        )


def accelerator(patient: Patient) -> Iterator[Finding]:
    """A GPU, where there is one, and whether the installed onnxruntime can use it."""
    from edge_sdk.device.accelerator import accelerator_name, onnxruntime_providers

    name = accelerator_name(patient.system)
    if name is None:
        found = "none found; the CPU is used"
    elif _CUDA in (onnxruntime_providers() or ()):
        found = f"{name}; onnxruntime uses it"
    else:
        found = f"{name}; this onnxruntime has no CUDA; the CPU is used"
    yield Finding("accelerator", Mark.OK, found)


def memory(patient: Patient) -> Iterator[Finding]:
    """Memory for training, against what any training process takes before its first parameter."""
    from edge_sdk.device.battery import SystemBattery
    from edge_sdk.device.probe import take_snapshot
    from edge_sdk.profile import load_profile

    profile = None if patient.profile is None else load_profile(patient.profile)
    training = take_snapshot(profile, SystemBattery(), _state_dir(patient), patient.system).training_memory_bytes
    found = f"{_mib(training)} may be used for training; it needs {_mib(_MIN_TRAINING_BYTES)} plus the submodel"
    if training < _MIN_TRAINING_BYTES:
        yield Finding("memory", Mark.FAILURE, found, "stop other programs, or choose a profile that allows more")
    elif training < _GOOD_TRAINING_BYTES:
        yield Finding("memory", Mark.WARNING, found, "only narrow submodels of small models will fit")
    else:
        yield Finding("memory", Mark.OK, found)


def control_group(patient: Patient) -> Iterator[Finding]:
    """The memory limit that a container or a systemd unit sets."""
    from edge_sdk.device.control_group import group_memory

    group = group_memory(patient.system)
    if group is None:
        yield Finding("control group", Mark.OK, "sets no limit")
        return
    small = group.limit_bytes < _SMALL_GROUP_BYTES
    advice = "raise the limit: MemoryMax= of a unit, --memory of a container" if small else ""
    found = f"{group.group} allows {_mib(group.limit_bytes)}, {_mib(group.available_bytes)} of it free"
    yield Finding("control group", Mark.WARNING if small else Mark.OK, found, advice)


def disk(patient: Patient) -> Iterator[Finding]:
    """Room on the disk, and whether the state folder can be written; leaves nothing behind."""
    from edge_sdk.device.policy import Policy
    from edge_sdk.device.probe import disk_free_bytes, existing_part

    folder = _state_dir(patient)
    free, least = disk_free_bytes(folder), Policy().min_disk_free_bytes
    if free is not None:
        mark = Mark.FAILURE if free < least else Mark.WARNING if free < GIB else Mark.OK
        advice = "" if mark is Mark.OK else f"free some: the agent stops below {_mib(least)}"
        yield Finding("disk", mark, f"{_mib(free)} free", advice)
    where = existing_part(folder)
    try:
        with tempfile.TemporaryFile(dir=where) as file:
            file.write(b"1")
    except OSError as error:
        advice = "give another --state-dir, or permission to write there"
        yield Finding("state folder", Mark.FAILURE, f"{where} cannot be written: {error.strerror}", advice)
    else:
        yield Finding("state folder", Mark.OK, f"{folder} can be written")


def sensors(patient: Patient) -> Iterator[Finding]:
    """What the policy depends on: temperature, battery, and whether the link is metered."""
    from edge_sdk.device.battery import SystemBattery
    from edge_sdk.device.link import is_metered
    from edge_sdk.device.sensors import temperature_c

    celsius = temperature_c(patient.system)
    if celsius is None:
        advice = "the policy's temperature limit cannot be enforced; the hardware has to protect itself"
        yield Finding("temperature", Mark.WARNING, "no sensor can be read", advice)
    else:
        yield Finding("temperature", Mark.OK, f"{celsius:.0f} °C")
    battery = SystemBattery()
    share, words = battery.share(), {True: "charging", False: "not charging", None: "charging unknown"}
    found = "no battery can be read" if share is None else f"{share:.0%}, {words[battery.charging()]}"
    yield Finding("battery", Mark.OK, found)
    metered = is_metered(patient.system)
    found = {True: "metered", False: "not metered", None: "unknown whether it is metered"}[metered]
    advice = "use --unmetered-only to avoid transfers over it" if metered else ""
    yield Finding("link", Mark.WARNING if metered else Mark.OK, found, advice)


def settings(patient: Patient) -> Iterator[Finding]:
    """The settings file: whether an agent can start with it, and whether its examples are there."""
    if patient.flaw:
        yield Finding("settings", Mark.FAILURE, patient.flaw)
    elif patient.config is not None:
        yield Finding("settings", Mark.OK, f"an agent can start with {patient.config}")
    if patient.data is not None and not patient.data.exists():
        yield Finding("examples", Mark.FAILURE, f"{patient.data} does not exist", "put them there, or change data")


def broker(patient: Patient) -> Iterator[Finding]:
    """Each step of connecting to the broker, up to the first that fails."""
    if patient.broker is not None:
        from edge_sdk.diagnosis.reaching import reach

        yield from reach(patient)


CHECKS: tuple[tuple[str, Check], ...] = (
    ("python", python_version),
    ("system", word_size),
    ("packages", packages),
    ("onnxruntime", onnxruntime),
    ("torch", torch),
    ("speed", speed),
    ("accelerator", accelerator),
    ("memory", memory),
    ("control group", control_group),
    ("disk", disk),
    ("clock", clock),
    ("sensors", sensors),
    ("settings", settings),
    ("broker", broker),
)


def _state_dir(patient: Patient) -> Path:
    from platformdirs import user_state_path

    return patient.state_dir or user_state_path("raffm-edge")


def _imports(name: str) -> bool:
    return System().output(sys.executable, "-c", f"import {name}", timeout_s=_IMPORT_S) is not None


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / MIB:,.0f} MiB"
