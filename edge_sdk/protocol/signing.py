"""Ed25519 envelopes: who signed what, in which role, and until when.

Two roles, after Uptane: ``release`` (kept offline where it matters) for what will serve inference, ``round`` (online)
for training. A key signs in its role alone; a payload names its role inside the signed bytes, so an envelope cannot be
moved from one role to the other.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

import msgspec

from edge_sdk.decoding import UNDECODABLE
from edge_sdk.elastic.submodel import Submodel
from edge_sdk.errors import UntrustedError
from edge_sdk.protocol.messages import BlobEntry, Name, PixelMean, PixelStd, Positive, Text

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


class Role(str, Enum):
    """What a key may sign."""

    RELEASE = "release"
    ROUND = "round"


class Envelope(msgspec.Struct, frozen=True):
    """Signed bytes. ``key`` is the signer's raw public key, 32 bytes; the signature covers role and payload."""

    role: Role
    payload: bytes
    key: bytes
    signature: bytes


class ReleaseManifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a device may put into its inference slot.

    ``release`` rises: a device refuses one that is not newer than its own. ``device`` names the only device meant.
    ``pixel_mean`` and ``pixel_std`` are those of the recipe that the model was trained with.
    """

    release: Positive
    fleet: Name
    device: Name
    task: Name
    submodel: Submodel
    labels: tuple[Text, ...]
    max_tokens: Positive
    pixel_mean: PixelMean = (0.5,)
    pixel_std: PixelStd = (0.5,)
    manifest: tuple[BlobEntry, ...]


# made once, on import: msgspec crashes where two threads meet a type for the first time
_envelopes = msgspec.msgpack.Decoder(Envelope)
_manifests = msgspec.msgpack.Decoder(ReleaseManifest)


def sign(key: Ed25519PrivateKey, role: Role, manifest: ReleaseManifest) -> bytes:
    """The encoded envelope around ``manifest``."""
    payload = msgspec.msgpack.encode(manifest)
    envelope = Envelope(role, payload, key.public_key().public_bytes_raw(), key.sign(_signed_bytes(role, payload)))
    return msgspec.msgpack.encode(envelope)


def verify(envelope: bytes, role: Role, trusted: bytes) -> ReleaseManifest:
    """The manifest inside; ``UntrustedError`` unless ``trusted``, a raw public key, signed it in ``role``."""
    # imported with the first release: 8 MiB that a device does without until then
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415

    try:
        signed = _envelopes.decode(envelope)
        if signed.role is not role or signed.key != trusted:
            signer = f"{signed.role.value} key {signed.key.hex()[:16]}"
            msg = f"release refused: signed by {signer}, trusted is {role.value} key {trusted.hex()[:16]}"
            raise UntrustedError(msg)
        Ed25519PublicKey.from_public_bytes(trusted).verify(signed.signature, _signed_bytes(role, signed.payload))
        return _manifests.decode(signed.payload)
    except (*UNDECODABLE, ValueError, InvalidSignature) as error:
        msg = f"release refused: the envelope or its signature does not hold ({type(error).__name__})"
        raise UntrustedError(msg) from error


def _signed_bytes(role: Role, payload: bytes) -> bytes:
    return b"raffm/1/" + role.value.encode() + b"\0" + payload
