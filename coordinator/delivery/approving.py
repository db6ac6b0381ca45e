"""A release until it may go out: recorded with its exports, looked at, and signed by enough of the release keys."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.delivery.roots import DAY_S, current_root
from coordinator.store.database import Store, Transaction
from coordinator.store.records import ReleaseRecord
from edge_sdk.decoding import UNDECODABLE
from edge_sdk.disk import disk_errors, write_durably
from edge_sdk.errors import ConfigurationError, UntrustedError
from edge_sdk.protocol.messages import MAX_MESSAGE_BYTES, Recipe
from edge_sdk.protocol.releases import Export, ReleaseManifest, encoded, read
from edge_sdk.protocol.signing import Role, Signature, sign, signers_of

_MOST_BYTES = MAX_MESSAGE_BYTES // 2 - 4096  # what is left of a message's is for signatures


class SignedManifest(msgspec.Struct, frozen=True):
    """A file to sign, or that was signed: of a release, its number and the digest of what is signed."""

    release: int
    payload: bytes
    signatures: tuple[Signature, ...] = ()


_files = msgspec.json.Decoder(SignedManifest)


def record_release(
    tx: Transaction,
    task: str,
    version: tuple[int, str],
    exports: Sequence[Export],
    recipe: Recipe,
    *,
    labels: tuple[str, ...],
    fleet: str,
    groups: tuple[str, ...],
    now_s: float,
    days: float,
) -> int:
    """A release of the version with this number and digest, which nobody has signed yet; its number.

    Raises ``ConfigurationError`` where its manifest does not fit into a message.
    """
    number, digest = version
    release = tx.releases.add(task, number, now_s)
    payload = encoded(
        ReleaseManifest(
            release=release,
            fleet=fleet,
            groups=groups,
            task=task,
            version=digest,
            issued_s=now_s,
            expires_s=now_s + days * DAY_S,
            labels=labels,
            max_tokens=recipe.max_tokens,
            pixel_mean=recipe.pixel_mean,
            pixel_std=recipe.pixel_std,
            exports=tuple(exports),
        )
    )
    if len(payload) > _MOST_BYTES:
        raise ConfigurationError(
            f"a release of {len(exports)} exports takes {len(payload)} bytes, more than {_MOST_BYTES}: name fewer "
            "precisions, or groups"
        )
    tx.releases.describe(release, payload)
    return release


def manifest_of(record: ReleaseRecord) -> ReleaseManifest:
    """What is signed, as a value."""
    return read(ReleaseManifest, record.manifest)


def known_release(tx: Transaction, release: int) -> ReleaseRecord:
    """The release of this number; ``ConfigurationError`` with the numbers that there are."""
    found = tx.releases.get(release)
    if found is None:
        numbers = ", ".join(str(known.release) for known in tx.releases.all()) or "none"
        raise ConfigurationError(f"there is no release {release}; the releases are {numbers}")
    return found


def signers(tx: Transaction, record: ReleaseRecord) -> tuple[int, int]:
    """How many of the release keys that count now have signed, and how many it takes."""
    keys = current_root(tx).release
    have = {each.key for each in record.signatures} & {*keys.keys}
    return len(have), keys.threshold


def is_approved(tx: Transaction, record: ReleaseRecord) -> bool:
    """Whether devices will take it."""
    have, needed = signers(tx, record)
    return have >= needed


def approve(tx: Transaction, release: int, given: Sequence[Signature], now_s: float, who: str) -> tuple[int, int]:
    """Add signatures; as :func:`signers` then. One that is there already changes nothing.

    Raises ``ConfigurationError`` for one that does not hold, or whose key is no release key.
    """
    record, keys = known_release(tx, release), current_root(tx).release
    there = {each.key for each in record.signatures}
    new = tuple(each for each in given if each.key not in there)
    try:
        strangers = signers_of(Role.RELEASE, record.manifest, new) - {*keys.keys}
    except UntrustedError as error:
        raise ConfigurationError(f"release {release} is not approved: {error}; sign what it is now") from error
    if strangers:
        names = ", ".join(sorted(key.hex()[:16] for key in strangers))
        raise ConfigurationError(f"release {release} is not approved: {names} is no release key of the root of trust")
    if new:
        tx.releases.sign(release, (*record.signatures, *new))
        tx.audit.note(now_s, who, "approve release", f"{release}, key {', '.join(each.key.hex()[:16] for each in new)}")
    return signers(tx, known_release(tx, release))


def signatures_by(record: ReleaseRecord, keys: Sequence[Ed25519PrivateKey]) -> tuple[Signature, ...]:
    """What these keys say of it."""
    return tuple(sign(key, Role.RELEASE, record.manifest) for key in keys)


def write_manifest(store: Store, release: int, file: Path) -> None:
    """Put what there is to sign into a file, for a machine without the store. Raises ``ConfigurationError``."""
    with store.reading() as tx:
        record = known_release(tx, release)
    with disk_errors(file):
        write_durably(file, file_to_sign(record))


def file_to_sign(record: ReleaseRecord) -> bytes:
    """What :func:`sign_manifest` takes as a file."""
    return msgspec.json.encode(SignedManifest(record.release, record.manifest)) + b"\n"


def sign_manifest(file: Path, key: Ed25519PrivateKey) -> tuple[ReleaseManifest, Path]:
    """Sign what is in a file; what that is, and the file with the signature beside it. ``ConfigurationError``."""
    given = read_signed(file)
    out = file.with_name(f"{file.stem}.{key.public_key().public_bytes_raw().hex()[:16]}.sig")
    signed = SignedManifest(given.release, given.payload, (sign(key, Role.RELEASE, given.payload),))
    with disk_errors(out):
        write_durably(out, msgspec.json.encode(signed) + b"\n")
    return read(ReleaseManifest, given.payload), out


def read_signed(file: Path) -> SignedManifest:
    """A file to sign, or that was signed. Raises ``ConfigurationError``."""
    try:
        found = parse_signed(file.read_bytes())
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read: {error.strerror}") from error
    except ConfigurationError as error:
        raise ConfigurationError(f"{file}: {error}") from error
    return found


def signatures_in(given: SignedManifest) -> tuple[Signature, ...]:
    """Those of a file that was signed. ``ConfigurationError`` where there is none."""
    if not given.signatures:
        raise ConfigurationError(
            f"this is what there is to sign of release {given.release}, and nobody has: give the file that "
            "`coordinator release sign` writes"
        )
    return given.signatures


def parse_signed(data: bytes) -> SignedManifest:
    """As :func:`read_signed`, of bytes."""
    try:
        found = _files.decode(data)
        read(ReleaseManifest, found.payload)
    except (*UNDECODABLE, ValueError, UntrustedError) as error:
        raise ConfigurationError(f"this is no manifest of a release: {error}") from error
    return found
