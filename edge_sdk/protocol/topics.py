"""The only place where topics are built or parsed: each device has a branch of its own, so that an ACL is one line.

raffm/1/<fleet>/announce              coordinator, retained
raffm/1/<fleet>/<device>/state        device, retained: birth and last will
raffm/1/<fleet>/<device>/up           device → coordinator
raffm/1/<fleet>/<device>/down         coordinator → device
raffm/1/<fleet>/<device>/chunk/up     bulk bytes, device → coordinator
raffm/1/<fleet>/<device>/chunk/down   bulk bytes, coordinator → device
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from edge_sdk.errors import ConfigurationError, MalformedMessageError

VERSION = 1
_ROOT = f"raffm/{VERSION}"
_NAME = re.compile(r"[a-z0-9-]{1,64}")


class Channel(str, Enum):
    """What a device's topic carries."""

    STATE = "state"
    UP = "up"
    DOWN = "down"
    CHUNK_UP = "chunk/up"
    CHUNK_DOWN = "chunk/down"


FROM_DEVICE = (Channel.STATE, Channel.UP, Channel.CHUNK_UP)
TO_DEVICE = (Channel.DOWN, Channel.CHUNK_DOWN)


@dataclass(frozen=True, slots=True)
class Topic:
    """A parsed topic; ``device`` and ``channel`` are ``None`` for the fleet's announcement."""

    fleet: str
    device: str | None = None
    channel: Channel | None = None

    def __str__(self) -> str:
        """The topic as the broker sees it."""
        if self.device is None or self.channel is None:
            return f"{_ROOT}/{self.fleet}/announce"
        return f"{_ROOT}/{self.fleet}/{self.device}/{self.channel.value}"


def check_name(name: str, what: str) -> str:
    """``name`` itself; ``ConfigurationError`` if it cannot be part of a topic. Errors call it ``what``."""
    if not _NAME.fullmatch(name):
        msg = f"{what} {name!r} is not usable in a topic: use 1 to 64 of a-z, 0-9 and '-'"
        raise ConfigurationError(msg)
    return name


def parse(topic: str) -> Topic:
    """Parse a topic; ``MalformedMessageError`` if it is not one of this protocol's."""
    parts = topic.split("/", 4)
    well_formed = len(parts) >= 4 and "/".join(parts[:2]) == _ROOT and all(_NAME.fullmatch(p) for p in parts[2:4])
    if well_formed and len(parts) == 4 and parts[3] == "announce":
        return Topic(parts[2])
    if well_formed and len(parts) == 5 and parts[4] in {channel.value for channel in Channel}:
        return Topic(parts[2], parts[3], Channel(parts[4]))
    msg = f"topic {topic[:200]!r} is not one of this protocol's"
    raise MalformedMessageError(msg)


def coordinator_name(fleet: str) -> str:
    """The coordinator's client id and its certificate's common name, which no device can have."""
    return f"coordinator@{fleet}"


def coordinator_filters(fleet: str) -> tuple[str, ...]:
    """What the coordinator of a fleet subscribes to."""
    return tuple(f"{_ROOT}/{fleet}/+/{channel.value}" for channel in FROM_DEVICE)


def device_filters(fleet: str, device: str) -> tuple[str, ...]:
    """What one device subscribes to."""
    return (str(Topic(fleet)), *(str(Topic(fleet, device, channel)) for channel in TO_DEVICE))
