"""Whether this device may train now: decided here, and stronger than any request."""

from __future__ import annotations

from dataclasses import dataclass

from edge_sdk.protocol.messages import Snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What the owner allows. What cannot be read does not forbid, unless ``charging_only`` asks for proof."""

    charging_only: bool = False
    battery_floor_share: float = 0.2
    min_disk_free_bytes: int = 256 << 20
    max_temperature_c: float = 85.0


@dataclass(frozen=True, slots=True)
class Denied:
    """Not now, and why; ``None`` in its place means that the device may train."""

    reason: str


def may_train(policy: Policy, snapshot: Snapshot) -> Denied | None:
    """The first rule that forbids to train now, or ``None``. Pure."""
    has_battery = snapshot.battery_share is not None or snapshot.charging is False
    on_battery = has_battery and snapshot.charging is not True
    if policy.charging_only and on_battery:
        return Denied("the policy allows training on a charger only")
    if on_battery and snapshot.battery_share is not None and snapshot.battery_share < policy.battery_floor_share:
        return Denied(
            f"battery at {snapshot.battery_share:.0%}, the policy's floor is {policy.battery_floor_share:.0%}"
        )
    if snapshot.temperature_c is not None and snapshot.temperature_c > policy.max_temperature_c:
        return Denied(f"{snapshot.temperature_c:.0f} °C, the policy's ceiling is {policy.max_temperature_c:.0f} °C")
    if snapshot.disk_free_bytes is not None and snapshot.disk_free_bytes < policy.min_disk_free_bytes:
        free, least = snapshot.disk_free_bytes >> 20, policy.min_disk_free_bytes >> 20
        return Denied(f"{free} MiB free on disk, the policy asks for {least} MiB")
    return None
