"""The release key: made on first use, kept in one file that only its owner can read."""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_sdk.disk import disk_errors
from edge_sdk.errors import ConfigurationError

KEY_FILE = "release.key"
PUBLIC_FILE = "release.pub"


def release_key(folder: Path) -> Ed25519PrivateKey:
    """The key in ``folder``; its public half lies beside it as ``release.pub``, in hexadecimal, for the devices.

    Raises ``ConfigurationError`` for a damaged key, ``StorageError`` where the disk refuses.
    """
    path = folder / KEY_FILE
    if not path.exists():
        with disk_errors(path):
            _create(path)
    try:
        key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(path.read_text(encoding="ascii").strip()))
    except ValueError as error:
        raise ConfigurationError(f"{path} is not a release key of 64 hexadecimal digits; restore it") from error
    public = key.public_key().public_bytes_raw().hex()
    with disk_errors(folder):
        (folder / PUBLIC_FILE).write_text(public + "\n", encoding="ascii")
    return key


def _create(path: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(Ed25519PrivateKey.generate().private_bytes_raw().hex() + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        path.unlink()  # half a key would be refused for ever
        raise
