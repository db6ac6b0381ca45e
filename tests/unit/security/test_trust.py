"""Releases: installed if signed for this device by the trusted key, and not older; nothing else passes."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.elastic.submodel import Submodel
from edge_sdk.errors import ConfigurationError, UntrustedError
from edge_sdk.protocol.messages import BlobEntry, Part
from edge_sdk.protocol.signing import Envelope, ReleaseManifest, Role, sign
from edge_sdk.security.trust import check_release, load_public_key

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


def check(envelope: bytes, *, trusted: bytes | None = TRUSTED, installed: int = 2) -> ReleaseManifest:
    return check_release(envelope, trusted, fleet="fleet", device="device", installed=lambda _: installed)


def signed_with(**changes: object) -> bytes:
    return sign(KEY, Role.RELEASE, msgspec.structs.replace(MANIFEST, **changes))


def envelope_with(envelope: bytes, **changes: object) -> bytes:
    decoded = msgspec.msgpack.decode(envelope, type=Envelope)
    return msgspec.msgpack.encode(msgspec.structs.replace(decoded, **changes))


@pytest.mark.parametrize("installed", [0, 2, 3])
def test_signed_release_that_is_not_older_is_accepted(installed: int) -> None:
    assert check(SIGNED, installed=installed) == MANIFEST


def test_older_release_is_refused_though_its_signature_holds() -> None:
    with pytest.raises(UntrustedError, match=r"release 3 of \w+ is older than 4, which runs"):
        check(SIGNED, installed=4)


def test_no_release_is_accepted_without_a_key() -> None:
    with pytest.raises(UntrustedError, match="given no release key"):
        check(SIGNED, trusted=None)


def test_other_key_is_refused() -> None:
    with pytest.raises(UntrustedError, match="signed by release key"):
        check(sign(OTHER_KEY, Role.RELEASE, MANIFEST))


def test_forged_signer_name_is_refused() -> None:
    with pytest.raises(UntrustedError, match="does not hold"):
        check(envelope_with(sign(OTHER_KEY, Role.RELEASE, MANIFEST), key=TRUSTED))


def test_forged_payload_under_a_real_signature_is_refused() -> None:
    newer = msgspec.msgpack.encode(msgspec.structs.replace(MANIFEST, release=99))
    with pytest.raises(UntrustedError, match="does not hold"):
        check(envelope_with(SIGNED, payload=newer))


def test_round_key_does_not_release() -> None:
    with pytest.raises(UntrustedError, match="signed by round key"):
        check(sign(KEY, Role.ROUND, MANIFEST))


def test_round_signature_renamed_to_release_is_refused() -> None:
    with pytest.raises(UntrustedError, match="does not hold"):
        check(envelope_with(sign(KEY, Role.ROUND, MANIFEST), role=Role.RELEASE))


@pytest.mark.parametrize("changes", [{"fleet": "another"}, {"device": "another"}])
def test_release_for_somebody_else_is_refused(changes: dict[str, str]) -> None:
    with pytest.raises(UntrustedError, match="not fleet/device"):
        check(signed_with(**changes))


@pytest.mark.parametrize("bit", range(8))
def test_envelope_with_any_one_bit_flipped_is_refused(bit: int) -> None:
    for position in range(len(SIGNED)):
        flipped = bytearray(SIGNED)
        flipped[position] ^= 1 << bit
        with pytest.raises(UntrustedError):
            check(bytes(flipped))


@given(st.dictionaries(st.integers(0, len(SIGNED) - 1), st.integers(1, 255), min_size=1, max_size=16))
def test_envelope_with_bits_flipped_anywhere_is_refused(flips: dict[int, int]) -> None:
    flipped = bytearray(SIGNED)
    for position, mask in flips.items():
        flipped[position] ^= mask
    with pytest.raises(UntrustedError):
        check(bytes(flipped))


@given(st.binary(max_size=600))
def test_bytes_that_nobody_signed_are_refused(envelope: bytes) -> None:
    with pytest.raises(UntrustedError):
        check(envelope)


@given(st.integers(0, len(SIGNED) - 1), st.binary(max_size=8))
def test_envelope_that_is_cut_short_is_refused(length: int, tail: bytes) -> None:
    if SIGNED[:length] + tail == SIGNED:
        return
    with pytest.raises(UntrustedError):
        check(SIGNED[:length] + tail)


def test_key_file_is_read_with_its_line_end(tmp_path: Path) -> None:
    path = tmp_path / "release.pub"
    path.write_text(TRUSTED.hex() + "\n", encoding="ascii")
    assert load_public_key(path) == TRUSTED


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"not a key", "is not hexadecimal"),
        (b"\xff\xfe", "is not hexadecimal"),
        (b"ab" * 31, "31 bytes"),
        (b"", "0 by"),
    ],
)
def test_key_file_that_is_wrong_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "release.pub"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=f"release.pub .*{reason}"):
        load_public_key(path)


def test_missing_key_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_public_key(tmp_path / "release.pub")
