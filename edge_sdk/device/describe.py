"""A device's measurements as rows for people and programs: a name with its unit, a value, and its source."""

from __future__ import annotations

import platform
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from edge_sdk.device.machine import Machine
from edge_sdk.device.processor import cpu_model
from edge_sdk.device.system import System
from edge_sdk.profile import DeviceProfile
from edge_sdk.protocol.messages import Snapshot


@dataclass(frozen=True, slots=True)
class Row:
    """One measured or configured value; ``None`` if it could not be read."""

    name: str
    value: str | float | None
    source: str


def describe(machine: Machine, snapshot: Snapshot) -> tuple[Row, ...]:
    """Everything that the coordinator would be told about ``machine``, and what identifies it."""
    limits = "this machine" if machine.profile is None else f"profile {machine.profile.name}"
    denial = machine.denial(snapshot)
    note = None if machine.profile is None else machine.profile.note
    return (
        Row("profile", machine.name, "configuration"),
        *(() if note is None else (Row("note", note, limits),)),
        Row("system", f"{platform.system()} {platform.machine()}", "platform"),
        Row("cpu", cpu_model(System()), "kernel"),
        Row("memory_total_bytes", snapshot.memory_total_bytes, limits),
        Row("memory_available_bytes", snapshot.memory_available_bytes, "psutil, control groups"),
        Row("training_memory_bytes", snapshot.training_memory_bytes, limits),
        Row("inference_memory_bytes", snapshot.inference_memory_bytes, limits),
        Row("threads", snapshot.threads, limits),
        Row("gflops", _rounded(snapshot.gflops), "float32 matrix product, the fastest of a second"),
        Row("throttled", _word(snapshot.throttled), "firmware, cpufreq under load"),
        Row("others_cpu_share", _rounded(snapshot.others_cpu_share), "psutil, since the start"),
        Row("accelerator", snapshot.accelerator, "driver, device tree"),
        Row("providers", None if snapshot.providers is None else " ".join(snapshot.providers), "onnxruntime"),
        Row("disk_free_bytes", snapshot.disk_free_bytes, "psutil"),
        Row("battery_share", snapshot.battery_share, "psutil or profile"),
        Row("charging", _word(snapshot.charging), "psutil or profile"),
        Row("draw_watts", _rounded(machine.watts), "owner, profile or sensor"),
        Row("temperature_c", snapshot.temperature_c, "kernel"),
        Row("metered", _word(snapshot.metered), "NetworkManager"),
        Row("may_train", "yes" if denial is None else f"no: {denial.reason}", "policy"),
    )


def table_of(rows: tuple[Row, ...]) -> Table:
    """The rows for a terminal."""
    table = Table("what", "value", "from")
    for row in rows:
        table.add_row(row.name, _readable(row), row.source)
    return table


def table_of_profiles(profiles: tuple[DeviceProfile, ...]) -> Table:
    """One line per profile, memory in MiB; in a narrow terminal the title is cut."""
    table = Table(box=None)
    table.add_column("name", no_wrap=True)
    for heading in ("memory", "train", "infer", "threads"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("title")
    for profile in profiles:
        limits = profile.limits
        figures = (profile.memory_total_mib, limits.training_memory_mib, limits.inference_memory_mib, limits.threads)
        title = Text(profile.title, no_wrap=True, overflow="ellipsis")
        table.add_row(profile.name, *(f"{figure:,}" for figure in figures), title)
    return table


def _word(value: bool | None) -> str | None:
    return None if value is None else str(value).lower()


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def _readable(row: Row) -> str:
    if row.value is None:
        return "unknown"
    if row.name.endswith("_bytes") and not isinstance(row.value, str):
        return f"{row.value / 2**20:,.0f} MiB"
    return str(row.value)
