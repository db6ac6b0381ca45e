"""How a device gets its certificates from the fleet's authority, and proves that it has the key.

    POST /enroll     with a one-time token: the first certificate, and what else a device has to know
    renew, renewed   over MQTT, before a certificate expires

A key is made on the device and never leaves it. What leaves it is a certificate request (PKCS #10) signed by the key.
``README.md`` beside this file has the rules.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from edge_sdk.protocol.messages import Name, Text

MAX_ENROLMENT_BYTES = 16 * 1024
"""The limit of a request to enrol, and of its answer."""
Pem = Annotated[str, msgspec.Meta(max_length=6000)]


class Enrolment(msgspec.Struct, frozen=True, kw_only=True):
    """What a device sends as JSON, with its token as bearer: the name that it wants, and its certificate request."""

    device: Name
    request: Pem


class Enrolled(msgspec.Struct, frozen=True, kw_only=True):
    """What the device gets: its certificate, and the fleet's name and broker.

    ``root`` is the content of its root of trust, ``root.json``, which says whose releases to install.
    """

    certificate: Pem
    broker: Text
    fleet: Name
    root: Pem


def signed_for_renewal(request: bytes) -> bytes:
    """The bytes that the old key signs (ECDSA, SHA-256) so that ``request`` is answered."""
    return b"raffm/1/renew\0" + request
