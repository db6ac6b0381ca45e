"""Topics: built and parsed in one place, and nothing else is accepted."""

from __future__ import annotations

import pytest

from edge_sdk.errors import ConfigurationError, MalformedMessageError
from edge_sdk.protocol.topics import (
    FROM_DEVICE,
    TO_DEVICE,
    Channel,
    Topic,
    check_name,
    coordinator_filters,
    device_filters,
    parse,
)


@pytest.mark.parametrize("channel", Channel)
def test_device_topic_is_parsed_back(channel: Channel) -> None:
    topic = Topic("fleet-1", "device-1", channel)
    assert str(topic) == f"raffm/1/fleet-1/device-1/{channel.value}"
    assert parse(str(topic)) == topic


def test_announcement_is_parsed_back() -> None:
    assert str(Topic("fleet")) == "raffm/1/fleet/announce"
    assert parse("raffm/1/fleet/announce") == Topic("fleet")


def test_device_named_announce_is_no_announcement() -> None:
    assert parse("raffm/1/fleet/announce/up") == Topic("fleet", "announce", Channel.UP)


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "raffm",
        "raffm/1/fleet",
        "raffm/1/fleet/device",
        "raffm/1/fleet/announcement",
        "raffm/2/fleet/device/up",
        "other/1/fleet/device/up",
        "raffm/1/fleet/device/sideways",
        "raffm/1/fleet/device/chunk",
        "raffm/1/fleet/device/chunk/up/more",
        "raffm/1/fleet/device/up/",
        "/raffm/1/fleet/device/up",
        "raffm/1//device/up",
        "raffm/1/fleet//up",
        "raffm/1/fleet/+/up",
        "raffm/1/#",
        "raffm/1/fleet/Device/up",
        "raffm/1/fleet/device\n/up",
        f"raffm/1/fleet/{'d' * 65}/up",
    ],
)
def test_another_topic_is_refused(topic: str) -> None:
    with pytest.raises(MalformedMessageError, match="not one of this protocol's"):
        parse(topic)


def test_long_topic_is_not_quoted_whole() -> None:
    with pytest.raises(MalformedMessageError) as caught:
        parse("x" * 60_000)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("name", ["a", "0", "-", "pi-4", "d" * 64])
def test_usable_name_is_returned(name: str) -> None:
    assert check_name(name, "device") == name


@pytest.mark.parametrize("name", ["", "A", "a_b", "a b", "a/b", "+", "#", "ä", "a\n", "d" * 65])
def test_unusable_name_is_refused_with_what_to_use(name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"device .* use 1 to 64 of"):
        check_name(name, "device")


def matches(pattern: str, topic: str) -> bool:
    wanted, levels = pattern.split("/"), topic.split("/")
    return len(wanted) == len(levels) and all(w in {"+", level} for w, level in zip(wanted, levels, strict=True))


def test_filters_bring_each_side_what_is_meant_for_it_alone() -> None:
    for channel in Channel:
        mine, others = str(Topic("f", "me", channel)), str(Topic("f", "you", channel))
        assert any(matches(p, mine) for p in device_filters("f", "me")) is (channel in TO_DEVICE)
        assert not any(matches(p, others) for p in device_filters("f", "me"))
        assert any(matches(p, mine) for p in coordinator_filters("f")) is (channel in FROM_DEVICE)
        assert not any(matches(p, mine) for p in coordinator_filters("g"))
    assert str(Topic("f")) in device_filters("f", "me")
    assert not any(matches(p, str(Topic("f"))) for p in coordinator_filters("f"))


def test_every_channel_has_one_direction() -> None:
    assert sorted([*FROM_DEVICE, *TO_DEVICE]) == sorted(Channel)
