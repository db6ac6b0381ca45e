"""How much bulk may be unacknowledged at once, and when there is room again."""

from __future__ import annotations

import pytest

from edge_sdk.transport import lane
from edge_sdk.transport.lane import Lane

FIRST_LIMIT = 256 * 1024
CHUNK = 64 * 1024


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The reading of the lane's clock, in seconds; a test sets it."""
    now_s = [100.0]
    monkeypatch.setattr(lane.time, "monotonic", lambda: now_s[0])
    return now_s


def fill(a_lane: Lane, size_bytes: int, first_id: int = 1) -> list[int]:
    """Send bulk messages of one size until there is no room; their ids."""
    ids = []
    while a_lane.has_room():
        ids.append(first_id + len(ids))
        a_lane.sent(ids[-1], size_bytes, bulk=True)
    return ids


def test_bulk_has_room_until_the_limit_in_bytes_is_in_flight() -> None:
    assert len(fill(Lane(), CHUNK)) == FIRST_LIMIT // CHUNK


def test_bulk_leaves_four_of_the_twenty_places_to_small_messages() -> None:
    assert len(fill(Lane(), 1)) == 16


def test_small_messages_take_no_room_from_bulk() -> None:
    a_lane = Lane()
    for message_id in range(100, 120):
        a_lane.sent(message_id, FIRST_LIMIT, bulk=False)
    assert len(fill(a_lane, CHUNK)) == FIRST_LIMIT // CHUNK


@pytest.mark.parametrize(
    ("took_s", "chunks"), [(0.9, 5), (1.0, 4), (4.0, 4), (4.1, 2)], ids=["prompt", "fair", "late", "slow"]
)
def test_limit_grows_with_a_prompt_acknowledgement_and_halves_with_a_slow_one(
    clock: list[float], took_s: float, chunks: int
) -> None:
    a_lane = Lane()
    a_lane.sent(1, CHUNK, bulk=True)
    clock[0] += took_s
    a_lane.acknowledged(1)
    assert len(fill(a_lane, CHUNK)) == chunks


def test_small_message_teaches_nothing_about_the_limit(clock: list[float]) -> None:
    a_lane = Lane()
    a_lane.sent(1, CHUNK, bulk=False)
    clock[0] += 60.0
    a_lane.acknowledged(1)
    assert len(fill(a_lane, CHUNK)) == FIRST_LIMIT // CHUNK


def test_slowest_link_still_takes_one_bulk_message_at_a_time(clock: list[float]) -> None:
    a_lane = Lane()
    for message_id in range(30):
        a_lane.sent(message_id, CHUNK, bulk=True)
        clock[0] += 5.0
        a_lane.acknowledged(message_id)
    assert len(fill(a_lane, CHUNK)) == 1


def test_limit_never_passes_two_mebibytes() -> None:
    a_lane = Lane()
    for message_id in range(30):
        a_lane.sent(message_id, FIRST_LIMIT, bulk=True)
        a_lane.acknowledged(message_id)
    assert len(fill(a_lane, FIRST_LIMIT)) == 8


def test_room_is_news_once_and_only_after_there_was_none() -> None:
    a_lane = Lane()
    a_lane.sent(50, 1, bulk=True)
    assert not a_lane.acknowledged(50)
    first, second, *_ = fill(a_lane, CHUNK)
    assert a_lane.acknowledged(first)
    assert not a_lane.acknowledged(second)


def test_acknowledgement_that_outruns_the_sending_call_leaves_nothing_in_flight() -> None:
    a_lane = Lane()
    a_lane.acknowledged(1)
    a_lane.sent(1, CHUNK, bulk=True)
    assert a_lane.largest_bytes() == 0


def test_lost_connection_forgets_what_was_in_flight() -> None:
    a_lane = Lane()
    a_lane.sent(1, CHUNK, bulk=True)
    a_lane.sent(2, 7, bulk=False)
    a_lane.forget()
    assert a_lane.largest_bytes() == 0


def test_lost_connection_forgets_acknowledgements_that_outran_the_sending_call() -> None:
    a_lane = Lane()
    a_lane.acknowledged(1)
    a_lane.forget()
    a_lane.sent(1, CHUNK, bulk=True)  # the next connection's first
    assert a_lane.largest_bytes() == CHUNK


def test_largest_message_in_flight_and_largest_ever_acknowledged_are_counted_apart() -> None:
    a_lane = Lane()
    for message_id, size_bytes in ((1, 9), (2, 5), (3, 30), (4, 7)):
        a_lane.sent(message_id, size_bytes, bulk=False)
    a_lane.acknowledged(1)
    a_lane.acknowledged(2)
    assert (a_lane.taken_bytes, a_lane.largest_bytes()) == (9, 30)
