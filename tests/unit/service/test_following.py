"""What a service's settings ask of systemd, beside its unit."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_sdk.profile import load_profile
from edge_sdk.service.following import drop_in_text
from edge_sdk.service.limits import cpu_percent, memory_max_mib
from edge_sdk.service.unit import Unit, unit_text

PROFILE = "raspberry-pi-zero-2-w"


def asked_for(folder: Path, settings: str, **of_unit: int | bool) -> dict[str, str]:
    """The directives beside the machine's unit, or another."""
    config = folder / "agent.toml"
    config.write_text(settings)
    unit = Unit(command=("/opt/raffm-edge/bin/edge-agent",), config=config, **of_unit)  # type: ignore[arg-type]
    return dict(line.split("=", 1) for line in drop_in_text(unit_text(unit)).splitlines() if "=" in line)


def test_limits_follow_from_the_profile_where_none_are_given(tmp_path: Path) -> None:
    settings, profile = f'profile = "{PROFILE}"\n', load_profile(PROFILE)
    limits = {"MemoryMax": f"{memory_max_mib(profile)}M", "CPUQuota": f"{cpu_percent(profile)}%"}
    assert asked_for(tmp_path, settings) == limits
    assert asked_for(tmp_path, settings, memory_max_mib=900) == {"CPUQuota": limits["CPUQuota"]}
    assert asked_for(tmp_path, settings, memory_max_mib=900, cpu_percent=50) == {}


def test_settings_that_are_an_example_or_not_there_ask_for_nothing(tmp_path: Path) -> None:
    assert asked_for(tmp_path, "#device =\n") == {}
    unit = Unit(command=("/bin/edge-agent",), config=tmp_path / "none.toml")
    assert drop_in_text(unit_text(unit)).endswith("[Service]\n")


@pytest.mark.parametrize("own", [False, True])
def test_torch_may_compile_its_kernels_and_onnxruntime_need_not(tmp_path: Path, own: bool) -> None:
    assert asked_for(tmp_path, 'runtime = "torch"\n', own=own) == {"MemoryDenyWriteExecute": "no"}
    assert asked_for(tmp_path, 'runtime = "onnx"\n', own=own) == {}


@pytest.mark.parametrize("key", ["data", "root", "password_file", "ca_file"])
def test_home_is_readable_where_a_file_of_the_settings_lies_there(tmp_path: Path, key: str) -> None:
    settings = f'{key} = "/home/me/file"\n'
    assert asked_for(tmp_path, settings) == {"ProtectHome": "read-only"}
    assert asked_for(tmp_path, settings, reads_home=True) == asked_for(tmp_path, settings, own=True) == {}
    assert asked_for(tmp_path, f'{key} = "/srv/file"\nstate_dir = "/home/me"\n') == {}
