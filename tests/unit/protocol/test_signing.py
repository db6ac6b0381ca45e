"""Envelopes: only the trusted key, in its role, over these very bytes."""

from __future__ import annotations

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_sdk.elastic.submodel import Submodel
from edge_sdk.errors import UntrustedError
from edge_sdk.protocol.messages import BlobEntry, Part
from edge_sdk.protocol.signing import Envelope, ReleaseManifest, Role, sign, verify

KEY, OTHER_KEY = Ed25519PrivateKey.from_private_bytes(bytes(32)), Ed25519PrivateKey.from_private_bytes(b"\1" * 32)
TRUSTED = KEY.public_key().public_bytes_raw()
MANIFEST = ReleaseManifest(
    release=3,
    fleet="fleet",
    device="device",
    task="task",
    submodel=Submodel((0, 1), (2, 2), (8, 8)),
    labels=("no", "yes"),
    max_tokens=64,
    manifest=(BlobEntry(part=Part.INFERENCE_MODEL, digest="ab" * 32, size_bytes=7),),
)
SIGNED = sign(KEY, Role.RELEASE, MANIFEST)


def with_changes(**changes: object) -> bytes:
    envelope = msgspec.msgpack.decode(SIGNED, type=Envelope)
    return msgspec.msgpack.encode(msgspec.structs.replace(envelope, **changes))


def test_signed_manifest_is_read_back() -> None:
    assert verify(SIGNED, Role.RELEASE, TRUSTED) == MANIFEST


def test_another_key_is_refused_by_name() -> None:
    with pytest.raises(UntrustedError, match=TRUSTED.hex()[:16]):
        verify(sign(OTHER_KEY, Role.RELEASE, MANIFEST), Role.RELEASE, TRUSTED)


def test_another_key_under_the_trusted_name_is_refused() -> None:
    forged = msgspec.msgpack.decode(sign(OTHER_KEY, Role.RELEASE, MANIFEST), type=Envelope)
    with pytest.raises(UntrustedError, match="does not hold"):
        verify(msgspec.msgpack.encode(msgspec.structs.replace(forged, key=TRUSTED)), Role.RELEASE, TRUSTED)


def test_round_key_cannot_sign_a_release() -> None:
    with pytest.raises(UntrustedError, match="signed by round key"):
        verify(sign(KEY, Role.ROUND, MANIFEST), Role.RELEASE, TRUSTED)


def test_envelope_moved_to_another_role_is_refused() -> None:
    with pytest.raises(UntrustedError, match="does not hold"):
        verify(with_changes(role=Role.ROUND), Role.ROUND, TRUSTED)


def test_changed_payload_is_refused() -> None:
    changed = msgspec.msgpack.encode(msgspec.structs.replace(MANIFEST, device="another"))
    with pytest.raises(UntrustedError, match="does not hold"):
        verify(with_changes(payload=changed), Role.RELEASE, TRUSTED)


def test_every_flipped_bit_is_refused() -> None:
    for position in range(len(SIGNED) * 8):
        flipped = bytearray(SIGNED)
        flipped[position // 8] ^= 1 << position % 8
        with pytest.raises(UntrustedError):
            verify(bytes(flipped), Role.RELEASE, TRUSTED)


def test_every_truncation_is_refused() -> None:
    for length in range(len(SIGNED)):
        with pytest.raises(UntrustedError):
            verify(SIGNED[:length], Role.RELEASE, TRUSTED)


def test_signed_bytes_of_another_shape_are_refused() -> None:
    payload = msgspec.msgpack.encode({"release": 0})
    signature = KEY.sign(b"raffm/1/release\0" + payload)
    with pytest.raises(UntrustedError, match="does not hold"):
        verify(with_changes(payload=payload, signature=signature), Role.RELEASE, TRUSTED)


@pytest.mark.parametrize("trusted", [b"", bytes(31), bytes(33)])
def test_trusted_key_that_is_no_key_trusts_nothing(trusted: bytes) -> None:
    with pytest.raises(UntrustedError):
        verify(SIGNED, Role.RELEASE, trusted)
    with pytest.raises(UntrustedError):
        verify(with_changes(key=trusted), Role.RELEASE, trusted)


def test_deeply_nested_envelope_is_refused() -> None:
    with pytest.raises(UntrustedError):
        verify(b"\x91" * 100_000, Role.RELEASE, TRUSTED)
