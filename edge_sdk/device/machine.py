"""This device as the agent sees it: its profile, battery and budgets, and what the policy allows now."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from edge_sdk.device.accelerator import accelerator_name, onnxruntime_providers
from edge_sdk.device.battery import Battery, DrainingBattery, SystemBattery
from edge_sdk.device.ledger import Clocks, Ledger
from edge_sdk.device.link import LinkCost, LinkSpeed
from edge_sdk.device.policy import Denied, Moment, Policy, may_begin
from edge_sdk.device.probe import take_snapshot
from edge_sdk.device.processor import (
    BRIEF_GEMM_S,
    OthersLoad,
    Speed,
    clock_share,
    is_throttled,
    measure_speed,
)
from edge_sdk.device.sensors import draw_watts
from edge_sdk.device.system import System
from edge_sdk.device.watch import Orders, Watch
from edge_sdk.elastic.runtimes import MIB, Runtime
from edge_sdk.errors import UnfitDeviceError
from edge_sdk.profile import DeviceProfile, load_profile
from edge_sdk.protocol.messages import Snapshot

THIS_MACHINE = "this-machine"
_MESSAGE_BYTES = 1 << 14  # larger messages carry a part of a blob


def _nothing_kept(_: str) -> None:
    """A device's first start."""


class Machine:
    """The device that the agent runs on, limited to ``profile`` if one is given.

    ``kept`` looks up, by name, what :meth:`numbers` returned before a restart: the charge of a profile's simulated
    battery, full at the first start, and the day's budgets. ``runtime`` is what the owner wants to train on, with at
    most ``threads`` threads. Whoever transfers blobs reports to :attr:`link_speed`.
    """

    def __init__(
        self,
        profile: str | None,
        policy: Policy,
        folder: Path,
        *,
        kept: Callable[[str], float | None] = _nothing_kept,
        runtime: Runtime = Runtime.ONNX,
        threads: int | None = None,
        system: System | None = None,
    ) -> None:
        self.profile: DeviceProfile | None = None if profile is None else load_profile(profile)
        self.policy = policy
        self.link_speed = LinkSpeed()
        self._folder, self._runtime, self._most_threads = folder, runtime, threads
        self._system = system or System()
        self._link_cost = LinkCost(self._system)
        self._moved = False
        self._taken: Snapshot | None = None
        self._speed: Speed | None = None
        self._accelerator: str | None = None
        self._clock_share: float | None = None
        self._others = OthersLoad()
        self._watch = Watch(policy)
        self._ledger = Ledger(Clocks.now(), kept)
        self._battery: Battery = SystemBattery()
        figures = self.profile.battery if self.profile is not None else None
        if figures is not None:
            full_wh, left_wh = figures.capacity_wh, kept("battery_wh")
            self._battery = DrainingBattery(figures, full_wh if left_wh is None else min(left_wh, full_wh))

    @property
    def name(self) -> str:
        """The profile's name, for the coordinator's registry."""
        return THIS_MACHINE if self.profile is None else self.profile.name

    @property
    def watts(self) -> float | None:
        """The power that training draws: as the owner states, else the profile, else as measured now."""
        if self.policy.training_watts is not None:
            return self.policy.training_watts
        if self.profile is not None:
            return None if self.profile.battery is None else self.profile.battery.training_watts
        return draw_watts(self._system)

    @property
    def is_counting(self) -> bool:
        """Whether anything depends on :meth:`numbers`: a daily budget, or a simulated battery."""
        budgets = (self.policy.daily_energy_wh, self.policy.daily_mib)
        return isinstance(self._battery, DrainingBattery) or any(budget is not None for budget in budgets)

    def numbers(self) -> dict[str, float]:
        """What has to survive a restart, by name."""
        battery = {"battery_wh": self._battery.left_wh} if isinstance(self._battery, DrainingBattery) else {}
        return battery | self._ledger.numbers()

    def spend(self, seconds: float, *, training: bool) -> None:
        """Account for ``seconds`` that have passed, idle or training."""
        self._battery.spend(seconds, training=training)
        self._ledger.pass_time(Clocks.now())
        if training and self.policy.daily_energy_wh is not None:
            self._ledger.spend(energy_wh=(self.watts or 0.0) * seconds / 3600)

    def transferred(self, size_bytes: int) -> None:
        """Account for bytes received or sent; if they use up the day's budget, the next :meth:`orders` are due now."""
        before = self._ledger.spent.transferred_bytes
        self._ledger.spend(transferred_bytes=size_bytes)
        self._moved = self._moved or size_bytes > _MESSAGE_BYTES
        if self.policy.daily_mib is not None and before < self.policy.daily_mib * MIB <= before + size_bytes:
            self._watch.hurry()

    def measure(self, gemm_s: float = BRIEF_GEMM_S) -> Speed:
        """The processor's speed, measured at the first call together with the other constants of the machine."""
        if self._speed is None:
            self._speed = measure_speed(self._system, gemm_s)
            self._clock_share = self._speed.clock_share
            self._accelerator = accelerator_name(self._system)
        return self._speed

    def snapshot(self, *, training: bool = False, brief: bool = False, working: bool = False) -> Snapshot:
        """What can be spared now; constants are measured once, at the first call.

        Whether the processor is throttled shows only under load: in that first measurement, and while ``training``. A
        ``brief`` snapshot, for a look every second, leaves out what is slow to read unless the policy depends on it;
        after the first, it waits at most 0.2 s for another program. ``working`` asks again whether the link is metered.
        """
        if training and self._speed is not None:
            self._clock_share = clock_share(self._system)
        speed = self.measure()
        taken = self._taken = self._take_snapshot()
        return msgspec.structs.replace(
            taken,
            threads=min(taken.threads, self._most_threads or taken.threads),
            gflops=speed.gflops,
            runtime=self._runtime,
            accelerator=self._accelerator,
            providers=None if self._accelerator is None else onnxruntime_providers(),  # half a second to ask
            throttled=None if brief else is_throttled(self._system, self._clock_share),
            others_cpu_share=self._others.share() if self.policy.idle_only or not brief else None,
            metered=self._link_cost.metered(working=working) if self.policy.unmetered_only or not brief else None,
            link_bytes_per_s=self.link_speed.bytes_per_s,
        )

    def denial(self, snapshot: Snapshot) -> Denied | None:
        """Why the owner's policy forbids asking for work now; ``None`` if it allows it."""
        return may_begin(self.policy, self._moment(snapshot))

    def lacks_disk(self) -> bool:
        """Whether less of the disk is free than the policy requires."""
        free_bytes = self.snapshot(brief=True).disk_free_bytes
        return free_bytes is not None and free_bytes < self.policy.min_disk_free_bytes

    def orders(self, now_s: float, *, fetching: bool, training: bool) -> Orders | None:
        """What the policy orders, ``None`` if no look is due; ``now_s`` is a monotonic clock's. See :mod:`.watch`."""
        if not self._watch.is_due(now_s):
            return None
        working, self._moved = fetching or training or self._moved, False
        moment = self._moment(self.snapshot(training=training, brief=True, working=working))
        return self._watch.look(now_s, moment, fetching=fetching, training=training)

    def _take_snapshot(self) -> Snapshot:
        """What is quick to measure; as it was before where memory could be read before, and cannot be now.

        So it is while the application has no file left to open, which must not end the agent. Raises
        ``UnfitDeviceError`` where it could never be read.
        """
        try:
            return take_snapshot(self.profile, self._battery, self._folder, self._system)
        except UnfitDeviceError:
            if self._taken is None:
                raise
            return self._taken

    def _moment(self, snapshot: Snapshot) -> Moment:
        return Moment(snapshot, Clocks.now().minute, self._ledger.spent, self.watts)
