"""Which devices take part in a task, and when its rounds may open."""

from __future__ import annotations

import random
from collections.abc import Iterable
from datetime import datetime, time
from fnmatch import fnmatchcase
from typing import Annotated

import msgspec

from edge_sdk.elastic.submodel import ModelTask
from edge_sdk.errors import ConfigurationError
from edge_sdk.protocol.messages import MAX_MESSAGE_BYTES, Holding, Positive, Seconds, Text

_MAX_LABEL_BYTES = MAX_MESSAGE_BYTES // 4
_FIRST_YEAR, _LAST_YEAR = 1970, 9998  # whatever the zone is added to them


class Targets(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Shell patterns (``*``, ``?``, ``[abc]``) for the id, the profile and the group of the devices of a task."""

    devices: tuple[str, ...] = ("*",)
    profiles: tuple[str, ...] = ("*",)
    groups: tuple[str, ...] = ("*",)

    def include(self, device: str, profile: str, group: str) -> bool:
        """Whether a device matches at least one pattern of each kind."""
        pairs = ((device, self.devices), (profile, self.profiles), (group, self.groups))
        return all(any(fnmatchcase(name, pattern) for pattern in patterns) for name, patterns in pairs)


class DataSchema(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a device's examples have to be: at least ``min_examples`` of the kind that the task's model learns from.

    ``labels`` are the classes in the order of the logits; by default, those of the task's own files when it is queued.
    Raises ``ConfigurationError`` for a label that is given twice, and for more labels than fit into an offer.
    """

    labels: Annotated[tuple[Text, ...], msgspec.Meta(max_length=1000)] = ()  # as an offer's
    min_examples: Positive = 1

    def __post_init__(self) -> None:
        twice = {label for label in self.labels if self.labels.count(label) > 1}
        if twice:
            raise ConfigurationError(f"labels has {', '.join(sorted(twice))} twice: name each class once")
        total_bytes = sum(len(label.encode()) for label in self.labels)
        if total_bytes > _MAX_LABEL_BYTES:
            raise ConfigurationError(
                f"{len(self.labels)} classes have names of {total_bytes} bytes together, more than "
                f"{_MAX_LABEL_BYTES}: shorten them, or use the right column"
            )

    def refusal(self, holding: Holding | None, suits: ModelTask | None) -> str | None:
        """Why a device with these examples cannot take part; ``None`` if it can, or if they are unknown.

        ``suits`` is the model's task, ``None`` while that is not known.
        """
        if holding is None:
            return None
        if suits is not None and holding.suits is not suits:
            return f"its examples are for {holding.suits.value}, the model is for {suits.value}"
        if holding.examples < self.min_examples:
            return f"it has {holding.examples} examples to train on, and needs {self.min_examples}"
        return None


class Schedule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """When a round may open: from ``begins`` on, within ``hours``, and at least ``every_s`` after the last one opened.

    ``hours`` are local time of the coordinator's machine, as is ``begins`` without a time zone. ``hours`` may cross
    midnight, as from 22:00 to 06:00. Raises ``ConfigurationError`` for hours that are empty or have a time zone, and
    for a year before 1970 or after 9998.
    """

    begins: datetime | None = None
    hours: tuple[time, time] | None = None
    every_s: Seconds = 0.0

    def __post_init__(self) -> None:
        if self.begins is not None and not _FIRST_YEAR <= self.begins.year <= _LAST_YEAR:
            raise ConfigurationError(
                f"begins in the year {self.begins.year}: use one from {_FIRST_YEAR} to {_LAST_YEAR}"
            )
        if self.hours is not None and any(hour.tzinfo is not None for hour in self.hours):
            raise ConfigurationError(
                f"hours from {self.hours[0]} to {self.hours[1]} have a time zone: give the coordinator's local time"
            )
        if self.hours is not None and self.hours[0] == self.hours[1]:
            raise ConfigurationError(
                f"hours from {self.hours[0]} to {self.hours[1]} are empty: leave them out, or widen them"
            )

    def allows(self, now_s: float, last_opened_s: float | None) -> bool:
        """Whether a round may open at ``now_s``, seconds since 1970.

        A last round that seems to have opened in the future, since the clock was set back, delays nothing.
        """
        now = datetime.fromtimestamp(now_s).astimezone()
        if self.begins is not None and now < self.begins.astimezone():
            return False
        if last_opened_s is not None and 0 <= now_s - last_opened_s < self.every_s:
            return False
        return self.hours is None or _is_within(now.time(), *self.hours)


def drawn_from(devices: Iterable[str], most: int | None, *, seed: int, round_number: int) -> tuple[str, ...]:
    """Up to ``most`` of ``devices``, drawn uniformly at random (FedAvg, arXiv 1602.05629, algorithm 1); ``None``: all.

    The result depends on the seed and the round, not on the order of ``devices``.
    """
    known = sorted(devices)
    if most is None or len(known) <= most:
        return tuple(known)
    return tuple(sorted(random.Random(f"{seed} {round_number}").sample(known, most)))  # noqa: S311 no secret


def _is_within(now: time, begin: time, end: time) -> bool:
    return begin <= now < end if begin < end else now >= begin or now < end
