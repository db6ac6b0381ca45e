"""The profiles that ship: every figure has a source, the limits keep the rule, and README and schema say the same."""

from __future__ import annotations

import datetime as dt
import json
import re
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import pytest
from typer.testing import CliRunner

from edge_sdk.cli import app
from edge_sdk.device import machine as machine_module
from edge_sdk.device.machine import Machine
from edge_sdk.device.policy import Policy
from edge_sdk.device.processor import Speed
from edge_sdk.elastic.runtimes import MIB
from edge_sdk.profile import (
    BatteryFigures,
    DeviceProfile,
    Limits,
    Source,
    all_profiles,
    load_profile,
    profile_names,
    schema,
)

FOLDER = Path(__file__).parents[3] / "device_profiles"
README = (FOLDER / "README.md").read_text(encoding="utf-8")
OWN_CHOICE = "raffm-edge: "
WITHOUT_SOURCE = {"name", "title", "kind", "sources"}  # what we call it, and the sources themselves
TABLES = {"limits": Limits, "battery": BatteryFigures}
ALL = [pytest.param(profile, id=profile.name) for profile in all_profiles()]


def figures(profile: DeviceProfile) -> set[str]:
    """The paths of all that the profile states and that needs a source."""
    tree = msgspec.to_builtins(profile)
    top = {name for name, value in tree.items() if value is not None and name not in {*TABLES, *WITHOUT_SOURCE}}
    return top | {f"{table}.{name}" for table in TABLES for name in tree[table] or ()}


def figures_without_source(profile: DeviceProfile) -> list[str]:
    covered = {field for source in profile.sources for field in source.fields}
    return sorted(path for path in figures(profile) if covered.isdisjoint({path, path.partition(".")[0]}))


def readme_rows(heading: str) -> list[str]:
    """The rows of the table below a heading."""
    section = README.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return [line for line in section.splitlines() if line.startswith("| `")]


def readme_row(profile: DeviceProfile) -> str:
    limits = profile.limits
    memory = (profile.memory_total_mib, limits.training_memory_mib, limits.inference_memory_mib)
    cells = (f"`{profile.name}`", profile.title, profile.architecture, *(f"{mib:,}" for mib in memory), limits.threads)
    return "| " + " | ".join(map(str, cells)) + " |"


def test_readme_lists_the_profiles_that_are_installed() -> None:
    assert readme_rows("What is here") == [readme_row(profile) for profile in all_profiles()]


def test_readme_explains_every_field() -> None:
    top = [name for name in DeviceProfile.__struct_fields__ if name not in TABLES]
    nested = [f"{table}.{name}" for table, struct in TABLES.items() for name in struct.__struct_fields__]
    explained = [re.findall("`([^`]+)`", row)[0] for row in readme_rows("The format")]
    assert sorted(explained) == sorted(top + nested)
    assert all(f"`{name}`" in README for name in Source.__struct_fields__)


def test_schema_is_what_the_code_generates() -> None:
    again = "python -c 'from edge_sdk.profile import schema; print(schema(), end=\"\")'"
    assert (FOLDER / "schema.json").read_text(encoding="utf-8") == schema(), f"write it again: {again}"


@pytest.mark.parametrize("name", profile_names())
def test_file_names_the_schema_and_itself(name: str) -> None:
    lines = (FOLDER / f"{name}.toml").read_text(encoding="utf-8").splitlines()
    assert lines[:2] == ["#:schema ./schema.json", f'name = "{name}"']


@pytest.mark.parametrize("profile", ALL)
def test_every_figure_has_a_source(profile: DeviceProfile) -> None:
    assert figures_without_source(profile) == []


@pytest.mark.parametrize("profile", ALL)
def test_every_source_is_of_figures_that_are_there(profile: DeviceProfile) -> None:
    stated = figures(profile)
    assert {field for source in profile.sources for field in source.fields} <= stated | {
        path.partition(".")[0] for path in stated
    }


@pytest.mark.parametrize("profile", ALL)
def test_sources_are_public_or_our_own_and_were_read_before_today(profile: DeviceProfile) -> None:
    for source in profile.sources:
        assert source.document.startswith(OWN_CHOICE) == (source.url is None), source.document
        assert source.read <= dt.datetime.now(tz=dt.timezone.utc).date(), source.document
        assert source.url is None or re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)+", urlsplit(source.url).hostname or "")


def test_figure_without_a_source_is_found() -> None:
    phone = load_profile("android-mid-range")
    covered = msgspec.structs.replace(phone, sources=load_profile("raspberry-pi-zero-2-w").sources)
    assert figures_without_source(covered) == ["battery.capacity_wh", "battery.idle_watts", "battery.training_watts"]
    assert "limits.threads" in figures_without_source(msgspec.structs.replace(phone, sources=()))


@pytest.mark.parametrize("profile", ALL)
def test_memory_is_of_a_class_that_is_built_and_that_the_name_says(profile: DeviceProfile) -> None:
    assert profile.memory_total_mib in {512, *(gib * 1024 for gib in (1, 2, 3, 4, 6, 8, 12, 16, 32, 64))}
    said = re.search(r"-(\d+)gb$", profile.name)
    assert said is None or profile.memory_total_mib == int(said[1]) * 1024


@pytest.mark.parametrize("profile", ALL)
def test_limits_leave_the_device_its_own_job(profile: DeviceProfile) -> None:
    limits = profile.limits
    share = 1 / 3 if profile.memory_total_mib < 2048 else 1 / 10
    assert limits.inference_memory_mib <= limits.training_memory_mib <= share * profile.memory_total_mib
    assert limits.threads <= profile.cores
    if profile.kind != "board":
        assert limits.threads < profile.cores


@pytest.mark.parametrize("profile", [found for found in ALL if found.values[0].memory_total_mib >= 2048])
def test_memory_limits_grow_with_the_memory_as_readme_says(profile: DeviceProfile) -> None:
    training, inference = profile.limits.training_memory_mib, profile.limits.inference_memory_mib
    assert training == max(168, profile.memory_total_mib // (24 if profile.kind == "phone" else 16))
    assert inference == (training if profile.name.startswith("jetson-") else pytest.approx(0.75 * training, rel=0.02))


@pytest.mark.parametrize("profile", ALL)
def test_battery_is_what_phones_have_and_draws_more_in_training(profile: DeviceProfile) -> None:
    assert (profile.battery is not None) == (profile.kind == "phone")
    if profile.battery is not None:
        assert profile.battery.idle_watts < profile.battery.training_watts


@pytest.mark.parametrize("profile", ALL)
def test_32_bit_system_is_said_to_have_no_wheel(profile: DeviceProfile) -> None:
    assert profile.architecture is not None
    if profile.architecture == "armv7l":
        assert profile.note is not None
        assert "no wheel" in profile.note


@pytest.mark.parametrize("profile", ALL)
def test_machine_with_the_profile_reports_no_more_than_its_limits(
    profile: DeviceProfile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine_module, "measure_speed", lambda *_: Speed(1.0, None))
    machine = Machine(profile.name, Policy(), tmp_path)
    snapshot = machine.snapshot()
    assert machine.name == profile.name
    assert snapshot.memory_total_bytes <= profile.memory_total_mib * MIB
    assert snapshot.training_memory_bytes <= profile.limits.training_memory_mib * MIB
    assert snapshot.inference_memory_bytes <= profile.limits.inference_memory_mib * MIB
    assert snapshot.threads <= profile.limits.threads
    assert machine.numbers().get("battery_wh") == (profile.battery.capacity_wh if profile.battery else None)


def test_note_of_a_profile_is_shown_with_it(tmp_path: Path) -> None:
    arguments = ["profile", "--profile", "beaglebone-black", "--state-dir", str(tmp_path), "--json"]
    invoked = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert json.loads(invoked.output)["note"] == load_profile("beaglebone-black").note


def test_list_prints_one_line_a_profile() -> None:
    lines = CliRunner().invoke(app, ["profile", "--list"], catch_exceptions=False).output.splitlines()
    assert [line.split()[0] for line in lines] == ["name", *profile_names()]
    assert lines[1 + profile_names().index("raspberry-pi-5-8gb")].split()[1:5] == ["8,192", "512", "384", "4"]


def test_list_as_json_is_what_the_files_say() -> None:
    output = CliRunner().invoke(app, ["profile", "--list", "--json"], catch_exceptions=False).output
    assert msgspec.convert(json.loads(output), tuple[DeviceProfile, ...]) == all_profiles()
