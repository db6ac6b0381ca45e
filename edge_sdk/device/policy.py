"""Whether this device may work now: decided here, and stronger than any request.

Each rule below is a function of a policy and a moment that returns why not, or ``None``. Three questions put them
together: whether to ask for work (:func:`may_begin`), to go on training (:func:`may_train`), to move blobs
(:func:`may_transfer`). All pure.

What cannot be read does not forbid, where its harm is small or the hardware looks after itself; where the owner's money
or promise is at stake the rule asks for proof, and then the unknown forbids. Each rule's docstring says which.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import time
from functools import lru_cache

from edge_sdk.elastic.runtimes import MIB
from edge_sdk.errors import SettingError
from edge_sdk.protocol.messages import Snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What the owner allows; ``None`` is no limit. Raises ``ConfigurationError`` where a value cannot be right.

    ``quiet_hours`` are windows of local time, ``"22:00-07:00"``, in which nothing is done. ``idle_only`` works while
    others take at most ``idle_cpu_share`` of all cores. ``daily_mib`` counts the bytes of messages and blobs both ways,
    ``daily_energy_wh`` what the device draws while it trains: ``training_watts`` where its owner says it, else its
    profile's figure, else what it measures.
    """

    charging_only: bool = False
    battery_floor_share: float = 0.2
    idle_only: bool = False
    idle_cpu_share: float = 0.25
    quiet_hours: tuple[str, ...] = ()
    unmetered_only: bool = False
    max_temperature_c: float = 85.0
    min_disk_free_bytes: int = 256 * MIB
    daily_energy_wh: float | None = None
    training_watts: float | None = None
    daily_mib: float | None = None

    def __post_init__(self) -> None:
        for name in ("battery_floor_share", "idle_cpu_share"):
            _check(name, getattr(self, name), at_most=1.0)
        for name in ("max_temperature_c", "min_disk_free_bytes", "daily_energy_wh", "training_watts", "daily_mib"):
            _check(name, getattr(self, name))
        for window in self.quiet_hours:
            QuietHours.parse(window)


@dataclass(frozen=True, slots=True)
class QuietHours:
    """A window of the local day, in minutes from midnight: ``start`` belongs to it, ``stop`` does not."""

    start: int
    stop: int

    @classmethod
    def parse(cls, text: str) -> QuietHours:
        """Read ``HH:MM-HH:MM``; a stop before the start is on the next day, ``24:00`` is this day's end."""
        try:
            start, stop = (_minute(part) for part in text.split("-"))
        except ValueError as error:
            raise SettingError("quiet_hours", text, "are not of the form 22:00-07:00") from error
        if start == stop:
            raise SettingError("quiet_hours", text, "are no time at all: use 00:00-24:00 for the whole day")
        return cls(start, stop)

    def hold(self, minute: int) -> bool:
        """Whether a minute of the day lies inside."""
        inside = (minute >= self.start, minute < self.stop)
        return all(inside) if self.start < self.stop else any(inside)


@dataclass(frozen=True, slots=True)
class Spent:
    """What was used since the day's budgets began: energy while training, bytes both ways."""

    energy_wh: float = 0.0
    transferred_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Moment:
    """All that a decision depends on. ``minute`` is of the local day; ``watts`` is ``None`` where nobody knows them."""

    snapshot: Snapshot
    minute: int
    spent: Spent = Spent()
    watts: float | None = None


@dataclass(frozen=True, slots=True)
class Denied:
    """Not now, and why; ``None`` in its place means yes."""

    reason: str


def may_begin(policy: Policy, moment: Moment) -> Denied | None:
    """Whether to ask for work, and to fetch what it takes: every rule holds."""
    return may_train(policy, moment) or may_transfer(policy, moment)


def may_train(policy: Policy, moment: Moment) -> Denied | None:
    """Whether training may go on. Bytes do not end it: the update waits in the outbox for the next day's."""
    return _first(_TRAINING_RULES, policy, moment)


def may_transfer(policy: Policy, moment: Moment) -> Denied | None:
    """Whether blobs may move, either way. Small messages always may."""
    return _first(_TRANSFER_RULES, policy, moment)


# -- the rules


def _charger(policy: Policy, moment: Moment) -> str | None:
    """Proof where there is a battery; a device that has none that can be read is on mains."""
    if policy.charging_only and _on_battery(moment.snapshot):
        return "the policy allows training on a charger only"
    return None


def _battery(policy: Policy, moment: Moment) -> str | None:
    """Unknown allows: a device without a battery has no share of it."""
    share = moment.snapshot.battery_share
    if share is None or not _on_battery(moment.snapshot) or share >= policy.battery_floor_share:
        return None
    return f"battery at {share:.0%}, the policy's floor is {policy.battery_floor_share:.0%}"


def _idle(policy: Policy, moment: Moment) -> str | None:
    """Proof: whoever uses the device now would feel it. Unknown only in an agent's first tenth of a second."""
    share = moment.snapshot.others_cpu_share
    if not policy.idle_only or (share is not None and share <= policy.idle_cpu_share):
        return None
    use = "others' use of the processor is unknown" if share is None else f"others use {share:.0%} of the processor"
    return f"{use}, the policy allows {policy.idle_cpu_share:.0%}"


def _hours(policy: Policy, moment: Moment) -> str | None:
    """Never unknown: a wrong clock is the owner's to set, and ``edge-agent doctor`` says so."""
    for window in policy.quiet_hours:
        if _window(window).hold(moment.minute):
            return f"it is {moment.minute // 60:02d}:{moment.minute % 60:02d}, within the quiet hours {window}"
    return None


def _metered(policy: Policy, moment: Moment) -> str | None:
    """Proof: bytes on a link that turns out to be metered are paid for and cannot be taken back."""
    if not policy.unmetered_only or moment.snapshot.metered is False:
        return None
    if moment.snapshot.metered is None:
        return "the policy allows unmetered links only, and the system does not say (NetworkManager does)"
    return "the link is metered, the policy allows unmetered ones only"


def _heat(policy: Policy, moment: Moment) -> str | None:
    """Unknown allows: many boards and containers show no sensor, and hardware protects itself."""
    celsius = moment.snapshot.temperature_c
    if celsius is None or celsius <= policy.max_temperature_c:
        return None
    return f"{celsius:.0f} °C, the policy's ceiling is {policy.max_temperature_c:.0f} °C"


def _disk(policy: Policy, moment: Moment) -> str | None:
    """Unknown allows: a disk that is full refuses by itself, and that costs an offer at most."""
    free = moment.snapshot.disk_free_bytes
    if free is None or free >= policy.min_disk_free_bytes:
        return None
    return f"{free // MIB} MiB free on disk, the policy asks for {policy.min_disk_free_bytes // MIB} MiB"


def _energy(policy: Policy, moment: Moment) -> str | None:
    """Proof: a budget of energy that nobody can count would be no budget."""
    if policy.daily_energy_wh is None:
        return None
    if moment.watts is None:
        return "the daily energy cannot be counted: give training_watts, or a profile with a battery's figures"
    if moment.spent.energy_wh < policy.daily_energy_wh:
        return None
    return f"{moment.spent.energy_wh:.1f} Wh used today, the policy allows {policy.daily_energy_wh:g} Wh"


def _bytes(policy: Policy, moment: Moment) -> str | None:
    """Never unknown: the agent counts what it sends and receives itself."""
    used_mib = moment.spent.transferred_bytes / MIB
    if policy.daily_mib is None or used_mib < policy.daily_mib:
        return None
    return f"{used_mib:.1f} MiB moved today, the policy allows {policy.daily_mib:g} MiB"


_window = lru_cache(maxsize=32)(QuietHours.parse)
_Rule = Callable[[Policy, Moment], str | None]
_TRAINING_RULES: tuple[_Rule, ...] = (_charger, _battery, _idle, _hours, _metered, _heat, _disk, _energy)
_TRANSFER_RULES: tuple[_Rule, ...] = (_hours, _metered, _bytes)


def _first(rules: tuple[_Rule, ...], policy: Policy, moment: Moment) -> Denied | None:
    reasons = (rule(policy, moment) for rule in rules)
    return next((Denied(reason) for reason in reasons if reason is not None), None)


def _on_battery(snapshot: Snapshot) -> bool:
    has_battery = snapshot.battery_share is not None or snapshot.charging is False
    return has_battery and snapshot.charging is not True


# -- what people write


def _check(name: str, value: float | None, at_most: float = float("inf")) -> None:
    if value is not None and not 0 <= value <= at_most:  # neither holds of nan
        limit = "not be negative" if at_most == float("inf") else f"be from 0 to {at_most:g}"
        raise SettingError(name, value, f"must {limit}")


def _minute(text: str) -> int:
    text = text.strip()
    if text == "24:00":
        return 24 * 60
    if len(text) != len("22:00"):
        raise ValueError(text)
    at = time.fromisoformat(text)
    return 60 * at.hour + at.minute
