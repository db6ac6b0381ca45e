"""The root of trust: which keys count. Its versions form a chain, each signed by the keys of the one before.

The first is made with the coordinator's own keys if none was installed, which is enough for a first try. A fleet whose
coordinator must not be able to sign inference models installs one whose root and release keys are kept elsewhere. The
newest lies in the state folder as ``root.json``, for the devices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.delivery.keys import own_key, read_public
from coordinator.store.database import Store, Transaction
from coordinator.store.records import RootRecord
from edge_sdk.disk import disk_errors, write_durably
from edge_sdk.errors import ConfigurationError, UntrustedError
from edge_sdk.protocol.releases import Root, encoded, read, verified
from edge_sdk.protocol.signing import Envelope, Keys, Role, opened, sign, signers_of
from edge_sdk.security.trust import load_root, parse_root

ROOT_FILE = "root.json"
DAY_S = 86400.0
_FIRST_DAYS = 3650.0


def ensure_root(store: Store, folder: Path, now_s: float) -> Path:
    """The file with the newest root of trust, which is made, together with its keys, if there is none.

    Raises as :func:`own_key`.
    """
    own_key(folder, Role.ROUND)
    with store.reading() as tx:
        latest = tx.roots.latest()
    if latest is None:
        secrets = {role: own_key(folder, role) for role in Role}
        keys = {role: Keys(keys=(key.public_key().public_bytes_raw(),)) for role, key in secrets.items()}
        root = first_root(keys[Role.ROOT], keys[Role.RELEASE], keys[Role.ROUND], now_s, _FIRST_DAYS * DAY_S)
        with store.transaction() as tx:
            latest = tx.roots.latest() or _added(tx, _signed(root, [secrets[Role.ROOT]]), now_s)
    return _write(folder, latest)


def current_envelope(tx: Transaction) -> Envelope:
    """The newest root, with its signatures. Raises ``ConfigurationError`` if there is none."""
    latest = tx.roots.latest()
    if latest is None:
        raise ConfigurationError("there is no root of trust: `coordinator root install FILE`, or `coordinator serve`")
    return opened(latest.envelope)


def current_root(tx: Transaction) -> Root:
    """The newest root. Raises ``ConfigurationError`` if there is none."""
    return read(Root, current_envelope(tx).payload)


def install_root(store: Store, folder: Path, file: Path, now_s: float, who: str) -> Root:
    """:func:`install` the root in ``file``. Also raises ``ConfigurationError`` if the file holds none."""
    return install(store, folder, read_root(file), str(file), now_s, who)


def install(store: Store, folder: Path, envelope: Envelope, place: str, now_s: float, who: str) -> Root:
    """Make ``envelope`` the newest root; devices receive it with their next release. Errors call it ``place``.

    Raises ``ConfigurationError`` if it is not signed by enough of its own keys and of those of the root before, is not
    the next version, or has expired.
    """
    with store.transaction() as tx:
        latest = tx.roots.latest()
        root = read(Root, envelope.payload)
        if root.version != (latest.version + 1 if latest else 1):
            raise ConfigurationError(
                f"{place} is root {root.version}; the next is {latest.version + 1 if latest else 1}"
            )
        if root.expires_s <= now_s:
            raise ConfigurationError(f"{place} has expired: make it again with more --days")
        data = msgspec.msgpack.encode(envelope)
        try:
            for signers in (root.root, *(() if latest is None else (current_root(tx).root,))):
                verified(Root, data, signers)
        except UntrustedError as error:
            raise ConfigurationError(f"{place} cannot be installed: {error}") from error
        added = _added(tx, envelope, now_s)
        tx.audit.note(now_s, who, "install root", str(root.version))
    _write(folder, added)
    return root


def keys_in(files: Sequence[Path], threshold: int | None) -> Keys:
    """The public keys in ``files``, of which ``threshold`` have to sign; all if it is ``None``.

    Raises ``ConfigurationError`` for a file that is no public key, or a threshold that the keys cannot reach.
    """
    keys, needed = tuple(map(read_public, files)), threshold or len(files)
    try:
        return Keys(keys=keys, threshold=needed)
    except ValueError as error:
        raise ConfigurationError(f"{needed} of these keys cannot sign: {error}") from error


def first_root(root: Keys, release: Keys, round_keys: Keys, now_s: float, lasts_s: float) -> Root:
    """Version 1 of the root of trust, valid for ``lasts_s`` seconds, unsigned."""
    return Root(version=1, issued_s=now_s, expires_s=now_s + lasts_s, root=root, release=release, round=round_keys)


def next_root(before: Path, changes: Mapping[str, Keys], now_s: float, lasts_s: float) -> Root:
    """The version after the root in the file ``before``, with the keys of some roles changed, unsigned.

    Raises ``ConfigurationError`` if the file holds no root.
    """
    known = read(Root, read_root(before).payload)
    return msgspec.structs.replace(
        known, version=known.version + 1, issued_s=now_s, expires_s=now_s + lasts_s, **changes
    )


def write_root(file: Path, root: Root, keys: Sequence[Ed25519PrivateKey]) -> None:
    """Sign ``root`` with ``keys`` and write it to a new file. Raises ``ConfigurationError`` if the file exists."""
    if file.exists():
        raise ConfigurationError(f"{file} exists already: choose another file")
    _save(file, _signed(root, keys))


def sign_root(file: Path, key: Ed25519PrivateKey) -> Envelope:
    """Add a signature to the root in a file.

    Raises ``ConfigurationError`` if the file holds no root, or the key has already signed it.
    """
    envelope = read_root(file)
    signature = sign(key, Role.ROOT, envelope.payload)
    try:
        signers_of(Role.ROOT, envelope.payload, (*envelope.signatures, signature))
    except UntrustedError as error:
        raise ConfigurationError(f"{file}: {error}") from error
    envelope = msgspec.structs.replace(envelope, signatures=(*envelope.signatures, signature))
    _save(file, envelope)
    return envelope


def read_root(file: Path) -> Envelope:
    """The envelope of the root in a file. Raises ``ConfigurationError`` if there is none."""
    return opened(load_root(file))


def root_in(data: bytes, place: str) -> Envelope:
    """The envelope of the root in the JSON ``data``. Raises ``ConfigurationError``, which names ``place``."""
    return opened(parse_root(data, place))


def _signed(root: Root, keys: Sequence[Ed25519PrivateKey]) -> Envelope:
    payload = encoded(root)
    return Envelope(Role.ROOT, payload, tuple(sign(key, Role.ROOT, payload) for key in keys))


def _added(tx: Transaction, envelope: Envelope, now_s: float) -> RootRecord:
    version = read(Root, envelope.payload).version
    record = RootRecord(version, msgspec.msgpack.encode(envelope), now_s)
    tx.roots.add(record)
    return record


def _write(folder: Path, record: RootRecord) -> Path:
    _save(folder / ROOT_FILE, opened(record.envelope))
    return folder / ROOT_FILE


def _save(file: Path, envelope: Envelope) -> None:
    with disk_errors(file):
        write_durably(file, msgspec.json.encode(envelope) + b"\n")
