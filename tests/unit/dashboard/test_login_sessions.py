"""Sessions: who has the id is in, until it ends."""

from __future__ import annotations

from coordinator.dashboard.sessions import LASTS_S, MAX_SESSIONS, Sessions


def test_session_ends_after_a_working_day() -> None:
    now_s = 100.0
    sessions = Sessions(lambda: now_s)
    session = sessions.open("digest")
    now_s += LASTS_S - 1
    assert sessions.token_digest(session) == "digest"
    now_s += 2
    assert sessions.token_digest(session) is None


def test_session_that_was_closed_or_never_opened_is_none() -> None:
    sessions = Sessions()
    session, other = sessions.open("mine"), sessions.open("theirs")
    assert session != other
    sessions.close(session)
    sessions.close(session)
    assert [sessions.token_digest(known) for known in (session, other, "", "x")] == [None, "theirs", None, None]


def test_one_session_too_many_ends_the_oldest() -> None:
    sessions = Sessions()
    opened = [sessions.open("digest") for _ in range(MAX_SESSIONS + 1)]
    assert sessions.token_digest(opened[0]) is None
    assert sessions.token_digest(opened[1]) == sessions.token_digest(opened[-1]) == "digest"
