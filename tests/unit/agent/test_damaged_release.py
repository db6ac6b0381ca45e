"""A release whose files are damaged after it was confirmed: the device says so, and takes it again."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_sdk.protocol.messages import Hello, ReleaseReport, Standing
from tests.support.lone_device import LoneDevice


def reports(device: LoneDevice) -> list[tuple[Standing | None, str]]:
    return [(said.standing, said.detail) for said in device.heard(ReleaseReport) if isinstance(said, ReleaseReport)]


@pytest.mark.parametrize("name", ["inference-model", "slot.json"])
def test_release_that_is_damaged_after_it_was_confirmed_is_asked_for_again(tmp_path: Path, name: str) -> None:
    with LoneDevice(tmp_path, [], releases_first=True) as device:
        device.run_until(lambda: (Standing.HEALTHY, "") in reports(device))
        device.restart(lambda: damage(device.state_dir / "slots" / "a" / name))
        device.run_until(lambda: reports(device))
        assert all(standing is Standing.TRYING for standing, _ in reports(device))
        assert all("its files are damaged on this device" in detail for _, detail in reports(device))
        assert device.supervisor.status.release == 0
        device.send(device.release)
        device.run_until(lambda: (Standing.HEALTHY, "") in reports(device))
        assert device.supervisor.tasks.chosen(None).serving.predict(["good film"])[0].label
        device.restart(lambda: None)
        device.run_until(lambda: device.heard(Hello))
        device.run_for(0.3)
        assert (device.supervisor.status.release, reports(device)) == (1, []), "it says so no longer"


def damage(path: Path) -> None:
    """Change the file in place, so that the cache's hard link to it is damaged too."""
    with path.open("r+b") as file:
        first = file.read(1)
        file.seek(0)
        file.write(bytes([first[0] ^ 0xFF]))
