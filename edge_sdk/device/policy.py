"""Whether this device may work now; no request from a coordinator overrides it.

Each rule below is a function of a policy and a moment that returns why work is forbidden, or ``None``. Three questions
combine them: whether to ask for work (:func:`may_begin`), to go on training (:func:`may_train`), and to move blobs
(:func:`may_transfer`). All are pure.

A value that cannot be read does not forbid work if the possible harm is small, or if the hardware protects itself. If
the owner's money or convenience is at stake, the rule demands proof, and an unknown value forbids. Each rule's
docstring says which.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import time
from functools import lru_cache
from numbers import Real

from edge_sdk.elastic.runtimes import MIB
from edge_sdk.errors import SettingError
from edge_sdk.protocol.messages import Snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What the owner allows; ``None`` is no limit. Raises ``ConfigurationError`` for a value that cannot be right.

    ``quiet_hours`` are windows of local time, such as ``"22:00-07:00"``, without training and transfers. With
    ``idle_only`` the device works while others use at most ``idle_cpu_share`` of all cores. ``daily_mib`` limits the
    bytes of messages and blobs, both ways together, and ``daily_energy_wh`` the energy drawn while training: at
    ``training_watts`` if the owner gives that, else at the profile's figure, else as measured.

    >>> Policy(charging_only=True, quiet_hours=("22:00-07:00",)).battery_floor_share
    0.2
    >>> Policy(quiet_hours=("22h-7h",))
    Traceback (most recent call last):
    edge_sdk.errors.SettingError: quiet_hours '22h-7h' are not of the form 22:00-07:00
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
        for name in ("charging_only", "idle_only", "unmetered_only"):
            if not isinstance(value := getattr(self, name), bool):
                raise SettingError(name, value, "is neither True nor False")
        for name in ("battery_floor_share", "idle_cpu_share"):
            _check(name, getattr(self, name), at_most=1.0)
        for name in ("max_temperature_c", "min_disk_free_bytes"):
            _check(name, getattr(self, name))
        for name in ("daily_energy_wh", "training_watts", "daily_mib"):
            if (limit := getattr(self, name)) is not None:
                _check(name, limit)
        if isinstance(self.quiet_hours, str):
            raise SettingError("quiet_hours", self.quiet_hours, "is one text: give a tuple of such")
        if not isinstance(self.quiet_hours, tuple | list) or not all(isinstance(it, str) for it in self.quiet_hours):
            raise SettingError("quiet_hours", self.quiet_hours, "is no tuple of texts like 22:00-07:00")
        for window in self.quiet_hours:
            QuietHours.parse(window)


@dataclass(frozen=True, slots=True)
class QuietHours:
    """A window [start, stop) of the local day, in minutes from midnight."""

    start: int
    stop: int

    @classmethod
    def parse(cls, text: str) -> QuietHours:
        """Read ``HH:MM-HH:MM``; a stop before the start is on the next day. Raises ``SettingError``."""
        try:
            start, stop = (_minute(part) for part in text.split("-"))
        except ValueError as error:
            raise SettingError("quiet_hours", text, "are not of the form 22:00-07:00") from error
        if start == stop:
            raise SettingError("quiet_hours", text, "are empty: use 00:00-24:00 for the whole day")
        return cls(start, stop)

    def covers(self, minute: int) -> bool:
        """Whether a minute of the day lies in the window."""
        inside = (minute >= self.start, minute < self.stop)
        return all(inside) if self.start < self.stop else any(inside)


@dataclass(frozen=True, slots=True)
class Spent:
    """What was used of the day's budgets: energy while training, bytes both ways."""

    energy_wh: float = 0.0
    transferred_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Moment:
    """All that a decision depends on; ``minute`` is that of the local day, ``watts`` what training draws if known."""

    snapshot: Snapshot
    minute: int
    spent: Spent = Spent()
    watts: float | None = None


@dataclass(frozen=True, slots=True)
class Denied:
    """Work is forbidden now, and why; functions return ``None`` instead if it is allowed."""

    reason: str


def may_begin(policy: Policy, moment: Moment) -> Denied | None:
    """Whether to ask for work, and to fetch blobs for it: only if no rule forbids it."""
    return may_train(policy, moment) or may_transfer(policy, moment)


def may_train(policy: Policy, moment: Moment) -> Denied | None:
    """Whether training may go on. A spent traffic budget does not end it: the update waits in the outbox."""
    return _first(_TRAINING_RULES, policy, moment)


def may_transfer(policy: Policy, moment: Moment) -> Denied | None:
    """Whether blobs may move, either way. Small messages always may."""
    return _first(_TRANSFER_RULES, policy, moment)


# -- the rules


def _charger(policy: Policy, moment: Moment) -> str | None:
    """Proof is needed if there is a battery; a device without a readable one counts as mains-powered."""
    if policy.charging_only and _on_battery(moment.snapshot):
        return "the policy allows training on a charger only"
    return None


def _battery(policy: Policy, moment: Moment) -> str | None:
    """Unknown allows: a device without a battery has no charge to read."""
    share = moment.snapshot.battery_share
    if share is None or not _on_battery(moment.snapshot) or share >= policy.battery_floor_share:
        return None
    return f"battery at {share:.0%}, the policy's floor is {policy.battery_floor_share:.0%}"


def _idle(policy: Policy, moment: Moment) -> str | None:
    """Proof is needed: whoever uses the device would notice. Unknown only in an agent's first tenth of a second."""
    share = moment.snapshot.others_cpu_share
    if not policy.idle_only or (share is not None and share <= policy.idle_cpu_share):
        return None
    use = "others' use of the processor is unknown" if share is None else f"others use {share:.0%} of the processor"
    return f"{use}, the policy allows {policy.idle_cpu_share:.0%}"


def _hours(policy: Policy, moment: Moment) -> str | None:
    """Never unknown: if the clock is wrong, ``edge-agent doctor`` says so, and the owner has to set it."""
    for window in policy.quiet_hours:
        if _window(window).covers(moment.minute):
            return f"it is {moment.minute // 60:02d}:{moment.minute % 60:02d}, within the quiet hours {window}"
    return None


def _metered(policy: Policy, moment: Moment) -> str | None:
    """Proof is needed: bytes sent over a metered link cost money and cannot be taken back."""
    if not policy.unmetered_only or moment.snapshot.metered is False:
        return None
    if moment.snapshot.metered is None:
        return "the policy allows unmetered links only, and the system does not say (NetworkManager does)"
    return "the link is metered, the policy allows unmetered ones only"


def _heat(policy: Policy, moment: Moment) -> str | None:
    """Unknown allows: many boards and containers show no sensor, and the hardware protects itself."""
    celsius = moment.snapshot.temperature_c
    if celsius is None or celsius <= policy.max_temperature_c:
        return None
    return f"{celsius:.0f} °C, the policy's ceiling is {policy.max_temperature_c:.0f} °C"


def _disk(policy: Policy, moment: Moment) -> str | None:
    """Unknown allows: a full disk refuses by itself, which costs an offer at most."""
    free = moment.snapshot.disk_free_bytes
    if free is None or free >= policy.min_disk_free_bytes:
        return None
    return f"{free // MIB} MiB free on disk, the policy asks for {policy.min_disk_free_bytes // MIB} MiB"


def _energy(policy: Policy, moment: Moment) -> str | None:
    """Proof is needed: an energy budget without a measurement would limit nothing."""
    if policy.daily_energy_wh is None:
        return None
    if moment.watts is None:
        return "the daily energy cannot be counted: give training_watts, or a profile with a battery's figures"
    if moment.spent.energy_wh < policy.daily_energy_wh:
        return None
    return f"{moment.spent.energy_wh:.1f} Wh used today, the policy allows {policy.daily_energy_wh:g} Wh"


def _bytes(policy: Policy, moment: Moment) -> str | None:
    """Never unknown: the agent itself counts what it sends and receives."""
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


def _check(name: str, value: object, at_most: float = float("inf")) -> None:
    if not isinstance(value, Real) or isinstance(value, bool):
        raise SettingError(name, value, "is no number")
    if not 0 <= float(value) <= at_most:  # neither holds of nan
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
