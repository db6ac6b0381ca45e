"""This device as the agent sees it: its profile, its battery, and what it may do now."""

from __future__ import annotations

from pathlib import Path

from edge_sdk.device.battery import Battery, DrainingBattery, SystemBattery
from edge_sdk.device.policy import Denied, Policy, may_train
from edge_sdk.device.probe import measure_gflops, take_snapshot
from edge_sdk.device.profile import DeviceProfile, load_profile
from edge_sdk.elastic.runtimes import Runtime
from edge_sdk.protocol.messages import Snapshot

THIS_MACHINE = "this-machine"


class Machine:
    """``profile`` limits what may be used; without one, what is measured is what there is.

    ``battery_wh`` is what an earlier start left of a profile's battery; ``None`` means full. ``runtime`` is what its
    owner wants to train on.
    """

    def __init__(
        self,
        profile: str | None,
        policy: Policy,
        folder: Path,
        *,
        battery_wh: float | None = None,
        runtime: Runtime = Runtime.ONNX,
    ) -> None:
        self.profile: DeviceProfile | None = None if profile is None else load_profile(profile)
        self._policy = policy
        self._folder, self._runtime = folder, runtime
        self._gflops: float | None = None
        self._battery: Battery = SystemBattery()
        figures = self.profile.battery if self.profile is not None else None
        if figures is not None:
            full_wh = figures.capacity_wh
            self._battery = DrainingBattery(figures, full_wh if battery_wh is None else min(battery_wh, full_wh))

    @property
    def name(self) -> str:
        """The profile's name, for the coordinator's registry."""
        return THIS_MACHINE if self.profile is None else self.profile.name

    @property
    def battery_wh(self) -> float | None:
        """What is left of a profile's battery; ``None`` where the hardware keeps count or there is no battery."""
        return self._battery.left_wh if isinstance(self._battery, DrainingBattery) else None

    def spend(self, seconds: float, *, training: bool) -> None:
        """Note that time has passed, idle or training."""
        self._battery.spend(seconds, training=training)

    def snapshot(self) -> Snapshot:
        """What can be spared now; the speed is measured once, at the first call."""
        if self._gflops is None:
            self._gflops = measure_gflops()
        return take_snapshot(self.profile, self._battery, self._folder, gflops=self._gflops, runtime=self._runtime)

    def denial(self, snapshot: Snapshot) -> Denied | None:
        """Why the owner's policy forbids to train now, or ``None``."""
        return may_train(self._policy, snapshot)
