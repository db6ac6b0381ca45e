"""What a device joins the fleet with: a one-time token to enrol, or, in an open fleet, its password at the broker."""

from __future__ import annotations

from coordinator.fleet.cutting import tell_broker
from coordinator.fleet.enrolment import enrolment_line, make_enrolment
from coordinator.fleet.folder import Fleet
from coordinator.fleet.passwords import make_password, password_line
from coordinator.store.database import Store
from edge_sdk.errors import ConfigurationError


def new_token(
    store: Store, fleet: Fleet, *, device: str | None, group: str | None, hours: float, now_s: float, who: str
) -> tuple[str, str]:
    """A token, which nobody can read again, and what to type on the device.

    One to enrol with is good for ``hours`` and for whatever ``device``; a password until there is another, or the
    device is revoked. Raises ``ConfigurationError`` for what is no name, or where a password is nobody's.
    """
    if not fleet.settings.is_open:
        secret = make_enrolment(store, device=device, group=group, hours=hours, now_s=now_s, who=who)
        return secret, enrolment_line(fleet, device)
    if device is None:
        raise ConfigurationError("in an open fleet a token is one device's password: name the device")
    secret = make_password(store, device, group, now_s, who)
    tell_broker(store, fleet)
    return secret, password_line(fleet, device)
