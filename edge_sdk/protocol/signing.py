"""Ed25519 envelopes: who signed what, in which role.

There are three roles, after TUF and Uptane: ``root`` says whose keys count, ``release`` (kept offline if it matters)
what may serve inference, ``round`` (online) which device runs what of it now. A role needs signatures by a threshold of
its keys. The signed bytes contain the role, so that a signature cannot be moved from one role to another.

1. Every signature in an envelope has to be valid, and no key may sign twice, so that nothing in it can be changed.
2. Signatures by keys of other roles do not count. A new root has signatures by its own root keys and by the old ones.
3. Only after that is the payload parsed.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Annotated

import msgspec

from edge_sdk.decoding import UNDECODABLE
from edge_sdk.errors import UntrustedError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

MAX_KEYS = 16
PublicKey = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]


class Role(str, Enum):
    """What a key may sign."""

    ROOT = "root"
    RELEASE = "release"
    ROUND = "round"


class Keys(msgspec.Struct, frozen=True, kw_only=True):
    """The raw public keys of a role, and how many of them have to sign; ``ValueError`` if there are not so many."""

    keys: Annotated[tuple[PublicKey, ...], msgspec.Meta(min_length=1, max_length=MAX_KEYS)]
    threshold: Annotated[int, msgspec.Meta(ge=1, le=MAX_KEYS)] = 1

    def __post_init__(self) -> None:
        if len({*self.keys}) < max(len(self.keys), self.threshold):
            raise ValueError(f"{len({*self.keys})} different keys of {len(self.keys)}, threshold {self.threshold}")


class Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A signature over role and payload; ``key`` is the raw public key."""

    key: PublicKey
    signature: Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]


class Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A payload and its signatures in one role."""

    role: Role
    payload: bytes
    signatures: Annotated[tuple[Signature, ...], msgspec.Meta(max_length=2 * MAX_KEYS)]


# made once, on import: msgspec crashes where two threads meet a type for the first time
_envelopes = msgspec.msgpack.Decoder(Envelope)


def sign(key: Ed25519PrivateKey, role: Role, payload: bytes) -> Signature:
    """Sign ``payload`` in ``role``."""
    return Signature(key.public_key().public_bytes_raw(), key.sign(_signed_bytes(role, payload)))


def seal(role: Role, payload: bytes, *signatures: Signature) -> bytes:
    """The encoded envelope."""
    return msgspec.msgpack.encode(Envelope(role, payload, signatures))


def opened(envelope: bytes) -> Envelope:
    """Decode an envelope without verifying it. Raises ``UntrustedError`` if it is none."""
    try:
        return _envelopes.decode(envelope)
    except (*UNDECODABLE, ValueError) as error:
        raise UntrustedError(f"the envelope cannot be read: {error}") from error


def verify(envelope: bytes, role: Role, trusted: Keys) -> bytes:
    """The payload, if a threshold of the keys ``trusted`` has signed it in ``role``; else ``UntrustedError``."""
    signed = opened(envelope)
    if signed.role is not role:
        raise UntrustedError(f"signed as {signed.role.value}, wanted is {role.value}")
    signers = signers_of(role, signed.payload, signed.signatures)
    count = len(signers & {*trusted.keys})
    if count < trusted.threshold:
        names = ", ".join(sorted(key.hex()[:16] for key in signers)) or "nobody"
        known = ", ".join(key.hex()[:16] for key in trusted.keys)
        raise UntrustedError(
            f"signed by {names}: {count} of the {trusted.threshold} {role.value} keys that it takes, of {known}"
        )
    return signed.payload


def signers_of(role: Role, payload: bytes, signatures: tuple[Signature, ...]) -> set[bytes]:
    """The keys that have signed; ``UntrustedError`` if a signature is invalid, or a key has signed twice."""
    # imported with the first release: 8 MiB that a device does without until then
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415

    signers = set[bytes]()
    for each in signatures:
        if each.key in signers:
            raise UntrustedError(f"key {each.key.hex()[:16]} has signed twice")
        try:
            Ed25519PublicKey.from_public_bytes(each.key).verify(each.signature, _signed_bytes(role, payload))
        except (InvalidSignature, ValueError) as error:
            raise UntrustedError(f"the signature of key {each.key.hex()[:16]} does not hold") from error
        signers.add(each.key)
    return signers


def _signed_bytes(role: Role, payload: bytes) -> bytes:
    return b"raffm/1/" + role.value.encode() + b"\0" + payload
