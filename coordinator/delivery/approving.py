"""Prepares a release to go out: it is recorded with its exports, inspected, and signed by enough release keys."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.delivery.roots import DAY_S, current_root
from coordinator.store.database import Store, Transaction
from coordinator.store.records import ReleaseRecord
from edge_sdk.decoding import UNDECODABLE
from edge_sdk.disk import disk_errors, write_durably
from edge_sdk.elastic.submodel import Submodel
from edge_sdk.errors import ConfigurationError, UntrustedError
from edge_sdk.protocol.messages import MAX_MESSAGE_BYTES, Recipe
from edge_sdk.protocol.releases import MAX_EXPORTS, Export, ReleaseManifest, encoded, read
from edge_sdk.protocol.signing import Role, Signature, sign, signers_of

_log = logging.getLogger(__name__)
_MOST_BYTES = MAX_MESSAGE_BYTES // 2 - 4096  # the rest of a message is for signatures


class SignedManifest(msgspec.Struct, frozen=True):
    """The content of a file to sign, or of a signed one: a release's number, its manifest, and the signatures.

    ``payload`` is the encoded manifest, which is what is signed.
    """

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
    """Record an unsigned release of the version with this number and digest, and return the release's number.

    Of the submodels in ``exports``, largest first, it has as many as its manifest has room for, evenly spaced. It
    expires ``days`` after ``now_s``, which is in seconds since the epoch. Raises ``ConfigurationError`` if not even the
    smallest fits.
    """
    number, digest = version
    release = tx.releases.add(task, number, now_s)
    manifest = ReleaseManifest(
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
    tx.releases.describe(release, _fitting(manifest))
    return release


def _fitting(manifest: ReleaseManifest) -> bytes:
    """The encoded manifest, with fewer submodels where all are too many for it."""
    submodels = tuple(dict.fromkeys(export.submodel for export in manifest.exports))
    for most in range(len(submodels), 0, -1):
        kept = {*_evenly(submodels, most)}
        exports = tuple(export for export in manifest.exports if export.submodel in kept)
        payload = encoded(msgspec.structs.replace(manifest, exports=exports))
        if len(exports) <= MAX_EXPORTS and len(payload) <= _MOST_BYTES:
            if most < len(submodels):
                words = "release %d of %s has %d of %d submodels that are each the best for some device: no more fit in"
                _log.warning(words, manifest.release, manifest.task, most, len(submodels))
            return payload
    raise ConfigurationError(
        f"not even one submodel of the release fits into its {_MOST_BYTES} bytes: name fewer precisions, or groups"
    )


def _evenly(submodels: Sequence[Submodel], most: int) -> Sequence[Submodel]:
    """``most`` of them, evenly spaced, with the last; with the first too, unless it is one only."""
    if most == 1:
        return submodels[-1:]
    return [submodels[round(place * (len(submodels) - 1) / (most - 1))] for place in range(most)]


def manifest_of(record: ReleaseRecord) -> ReleaseManifest:
    """The release's manifest, decoded."""
    return read(ReleaseManifest, record.manifest)


def known_release(tx: Transaction, release: int) -> ReleaseRecord:
    """The release with this number. Raises ``ConfigurationError``, which lists those that exist, if there is none."""
    found = tx.releases.get(release)
    if found is None:
        numbers = ", ".join(str(known.release) for known in tx.releases.all()) or "none"
        raise ConfigurationError(f"there is no release {release}; the releases are {numbers}")
    return found


def signers(tx: Transaction, record: ReleaseRecord) -> tuple[int, int]:
    """How many of the current root's release keys have signed the release, and how many have to."""
    keys = current_root(tx).release
    have = {each.key for each in record.signatures} & {*keys.keys}
    return len(have), keys.threshold


def is_approved(tx: Transaction, record: ReleaseRecord) -> bool:
    """Whether enough release keys have signed, so that devices accept the release."""
    have, needed = signers(tx, record)
    return have >= needed


def approve(tx: Transaction, release: int, given: Sequence[Signature], now_s: float, who: str) -> tuple[int, int]:
    """Add signatures and return :func:`signers`; signatures by keys that have signed already are ignored.

    Raises ``ConfigurationError`` for a signature that is invalid, or whose key is not a release key.
    """
    record, keys = known_release(tx, release), current_root(tx).release
    there = {each.key for each in record.signatures}
    new = tuple(each for each in given if each.key not in there)
    try:
        strangers = signers_of(Role.RELEASE, record.manifest, new) - {*keys.keys}
    except UntrustedError as error:
        raise ConfigurationError(f"release {release} is not approved: {error}; sign its current manifest") from error
    if strangers:
        names = ", ".join(sorted(key.hex()[:16] for key in strangers))
        raise ConfigurationError(
            f"release {release} is not approved: {names} is not a release key of the root of trust"
        )
    if new:
        tx.releases.sign(release, (*record.signatures, *new))
        tx.audit.note(now_s, who, "approve release", f"{release}, key {', '.join(each.key.hex()[:16] for each in new)}")
    return signers(tx, known_release(tx, release))


def signatures_by(record: ReleaseRecord, keys: Sequence[Ed25519PrivateKey]) -> tuple[Signature, ...]:
    """The signatures of these keys over the release's manifest."""
    return tuple(sign(key, Role.RELEASE, record.manifest) for key in keys)


def write_manifest(store: Store, release: int, file: Path) -> None:
    """Write the file to sign, for a machine that has no access to the store.

    Raises ``ConfigurationError`` if there is no such release, ``StorageError`` if the file cannot be written.
    """
    with store.reading() as tx:
        record = known_release(tx, release)
    with disk_errors(file):
        write_durably(file, file_to_sign(record))


def file_to_sign(record: ReleaseRecord) -> bytes:
    """The content of the file that :func:`sign_manifest` takes."""
    return msgspec.json.encode(SignedManifest(record.release, record.manifest)) + b"\n"


def sign_manifest(file: Path, key: Ed25519PrivateKey) -> tuple[ReleaseManifest, Path]:
    """Sign the manifest in a file; returns the manifest, and the file with the signature, which lies beside the first.

    Raises ``ConfigurationError`` if the file cannot be read or holds no manifest.
    """
    given = read_signed(file)
    out = file.with_name(f"{file.stem}.{key.public_key().public_bytes_raw().hex()[:16]}.sig")
    signed = SignedManifest(given.release, given.payload, (sign(key, Role.RELEASE, given.payload),))
    with disk_errors(out):
        write_durably(out, msgspec.json.encode(signed) + b"\n")
    return read(ReleaseManifest, given.payload), out


def read_signed(file: Path) -> SignedManifest:
    """Read a file to sign, or a signed one. Raises ``ConfigurationError`` if it cannot be read or holds no manifest."""
    try:
        found = parse_signed(file.read_bytes())
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read: {error.strerror}") from error
    except ConfigurationError as error:
        raise ConfigurationError(f"{file}: {error}") from error
    return found


def signatures_in(given: SignedManifest) -> tuple[Signature, ...]:
    """The signatures of a signed file. Raises ``ConfigurationError`` if there are none."""
    if not given.signatures:
        raise ConfigurationError(
            f"this file of release {given.release} is not signed: give the file that `coordinator release sign` writes"
        )
    return given.signatures


def parse_signed(data: bytes) -> SignedManifest:
    """:func:`read_signed`, but from the content of the file."""
    try:
        found = _files.decode(data)
        read(ReleaseManifest, found.payload)
    except (*UNDECODABLE, ValueError, UntrustedError) as error:
        raise ConfigurationError(f"this is not the manifest of a release: {error}") from error
    return found
