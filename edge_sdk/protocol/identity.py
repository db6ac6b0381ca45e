"""Who a device is: what it asks the fleet's authority for, and how it shows that it has the key.

    POST /enroll     with a one-time token: the first certificate, and what else a device has to know
    renew, renewed   over MQTT, before a certificate ends

A key is made on the device and never leaves it. What leaves is a certificate request (PKCS #10), which the key has
signed. ``README.md`` beside this file has the rules.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from edge_sdk.protocol.messages import Name, Text

MAX_ENROLMENT_BYTES = 16 * 1024
"""Of a request to enrol, and of its answer."""
Pem = Annotated[str, msgspec.Meta(max_length=6000)]


class Enrolment(msgspec.Struct, frozen=True, kw_only=True):
    """What a device sends, as JSON, with its token as bearer: who it wants to be, and its certificate request."""

    device: Name
    request: Pem


class Enrolled(msgspec.Struct, frozen=True, kw_only=True):
    """What it gets: its certificate, and where the fleet is.

    ``root`` is the file with its root of trust, which says whose releases are to be installed.
    """

    certificate: Pem
    broker: Text
    fleet: Name
    root: Pem


def signed_for_renewal(request: bytes) -> bytes:
    """What the old key signs (ECDSA, SHA-256) to have ``request`` answered."""
    return b"raffm/1/renew\0" + request
