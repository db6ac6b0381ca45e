"""Envelopes: enough of the trusted keys, in their role, over these very bytes."""

from __future__ import annotations

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_sdk.errors import UntrustedError
from edge_sdk.protocol.signing import Envelope, Keys, Role, Signature, opened, seal, sign, signers_of, verify
from tests.support.signed import keys_of

ANN, BOB, EVE = (Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in (1, 2, 3))
BOTH = keys_of([ANN, BOB], threshold=2)
PAYLOAD = b"what is signed"


def signed(*keys: Ed25519PrivateKey, role: Role = Role.RELEASE, payload: bytes = PAYLOAD) -> bytes:
    return seal(role, payload, *(sign(key, role, payload) for key in keys))


def with_changes(envelope: bytes, **changes: object) -> bytes:
    return msgspec.msgpack.encode(msgspec.structs.replace(opened(envelope), **changes))


def test_payload_is_given_where_enough_have_signed() -> None:
    assert verify(signed(ANN, BOB), Role.RELEASE, BOTH) == PAYLOAD
    assert verify(signed(BOB), Role.RELEASE, keys_of([ANN, BOB])) == PAYLOAD


def test_a_signature_too_few_is_refused_with_who_has_signed() -> None:
    with pytest.raises(UntrustedError, match="1 of the 2 release keys"):
        verify(signed(ANN), Role.RELEASE, BOTH)


def test_nobody_s_envelope_is_refused() -> None:
    with pytest.raises(UntrustedError, match="signed by nobody"):
        verify(signed(), Role.RELEASE, BOTH)


def test_stranger_counts_for_nothing_and_does_no_harm() -> None:
    with pytest.raises(UntrustedError, match="1 of the 2"):
        verify(signed(ANN, EVE), Role.RELEASE, BOTH)
    assert verify(signed(ANN, EVE, BOB), Role.RELEASE, BOTH) == PAYLOAD


def test_key_that_signs_twice_is_refused() -> None:
    with pytest.raises(UntrustedError, match="signed twice"):
        verify(signed(ANN, ANN), Role.RELEASE, BOTH)


def test_signature_under_a_trusted_name_is_refused() -> None:
    forged = Signature(BOB.public_key().public_bytes_raw(), sign(EVE, Role.RELEASE, PAYLOAD).signature)
    with pytest.raises(UntrustedError, match="does not hold"):
        verify(seal(Role.RELEASE, PAYLOAD, sign(ANN, Role.RELEASE, PAYLOAD), forged), Role.RELEASE, BOTH)


@pytest.mark.parametrize("role", [Role.ROOT, Role.ROUND])
def test_envelope_of_another_role_is_refused_renamed_or_not(role: Role) -> None:
    other = signed(ANN, BOB, role=role)
    with pytest.raises(UntrustedError, match=f"signed as {role.value}"):
        verify(other, Role.RELEASE, BOTH)
    with pytest.raises(UntrustedError, match="does not hold"):
        verify(with_changes(other, role=Role.RELEASE), Role.RELEASE, BOTH)


def test_changed_payload_is_refused() -> None:
    with pytest.raises(UntrustedError, match="does not hold"):
        verify(with_changes(signed(ANN, BOB), payload=b"something else"), Role.RELEASE, BOTH)


def test_one_broken_signature_spoils_enough_good_ones() -> None:
    """Else it could be changed at will, and what is signed would have many forms."""
    broken = Signature(EVE.public_key().public_bytes_raw(), bytes(64))
    envelope = with_changes(signed(ANN, BOB), signatures=(*opened(signed(ANN, BOB)).signatures, broken))
    with pytest.raises(UntrustedError, match="does not hold"):
        verify(envelope, Role.RELEASE, BOTH)


def test_every_truncation_is_refused() -> None:
    whole = signed(ANN, BOB)
    for length in range(len(whole)):
        with pytest.raises(UntrustedError):
            verify(whole[:length], Role.RELEASE, BOTH)


@pytest.mark.parametrize("data", [b"", b"\x91" * 100_000, msgspec.msgpack.encode({"role": "release"})])
def test_what_is_no_envelope_is_refused(data: bytes) -> None:
    with pytest.raises(UntrustedError, match="cannot be read"):
        verify(data, Role.RELEASE, BOTH)


@pytest.mark.parametrize(
    ("keys", "threshold"),
    [((), 1), ((b"a" * 32,), 2), ((b"a" * 32, b"a" * 32), 1), ((b"a" * 31,), 1), ((b"a" * 32,), 0)],
)
def test_keys_that_no_threshold_can_be_reached_with_are_none(keys: tuple[bytes, ...], threshold: int) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode({"keys": keys, "threshold": threshold}), type=Keys)


def test_signers_are_told_whoever_they_are() -> None:
    envelope: Envelope = opened(signed(EVE))
    assert signers_of(envelope.role, PAYLOAD, envelope.signatures) == {EVE.public_key().public_bytes_raw()}
