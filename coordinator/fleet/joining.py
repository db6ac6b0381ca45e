"""The secret with which a device joins: a one-time token to enrol or, in an open fleet, its password at the broker."""

from __future__ import annotations

from coordinator.fleet.cutting import tell_broker
from coordinator.fleet.enrolment import enrolment_line, make_enrolment
from coordinator.fleet.folder import Fleet
from coordinator.fleet.passwords import make_password, password_line
from coordinator.store.database import Store
from edge_sdk.errors import ConfigurationError

_USUAL_HOURS = 24.0


def new_token(
    store: Store, fleet: Fleet, *, device: str | None, group: str | None, hours: float | None, now_s: float, who: str
) -> tuple[str, str]:
    """Make a token, which cannot be read again later; the token, and the command to type on the device.

    A token to enrol with is valid for ``hours``, a day where they are ``None``, and for any device unless ``device`` is
    named. A password is valid until it is replaced or the device is revoked. Raises ``ConfigurationError`` for a
    malformed name, or for a password without a ``device`` or with ``hours``.
    """
    if not fleet.settings.is_open:
        hours = _USUAL_HOURS if hours is None else hours
        secret = make_enrolment(store, device=device, group=group, hours=hours, now_s=now_s, who=who)
        return secret, enrolment_line(fleet, device)
    if device is None:
        raise ConfigurationError("in an open fleet a token is the password of one device: give --device")
    if hours is not None:
        raise ConfigurationError("in an open fleet a token does not expire: leave out --hours")
    secret = make_password(store, device, group, now_s, who)
    tell_broker(store, fleet)
    return secret, password_line(fleet, device)


def unlisted(fleet: Fleet | None) -> str | None:
    """Why devices may have tokens that are not among the one-time ones, or none; ``None`` where they enrol."""
    if fleet is None:
        return "this fleet has no authority: its broker decides which devices connect, and tokens are not used"
    if fleet.settings.is_open:
        return "this fleet is open: a device's token is its password, which no list shows; a new one replaces it"
    return None
