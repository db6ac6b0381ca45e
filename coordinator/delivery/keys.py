"""The release key: made on first use, kept in one file that only its owner can read."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_sdk.disk import disk_errors, sync, write_durably
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
    key = read_key(path)
    with disk_errors(folder):
        write_durably(folder / PUBLIC_FILE, f"{public_half(key)}\n".encode())
    return key


def read_key(path: Path) -> Ed25519PrivateKey:
    """The key in a file. Raises as :func:`release_key`."""
    try:
        with disk_errors(path):
            return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(path.read_text(encoding="ascii").strip()))
    except ValueError as error:
        raise ConfigurationError(f"{path} is not a release key of 64 hexadecimal digits; restore it") from error


def public_half(key: Ed25519PrivateKey) -> str:
    """What devices verify by, in hexadecimal."""
    return key.public_key().public_bytes_raw().hex()


def _create(path: Path) -> None:
    """Whole or not at all, and never in place of another's: half a key would be refused for ever."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f"{path.name}.") as file:  # for its owner's eyes only
        file.write(f"{Ed25519PrivateKey.generate().private_bytes_raw().hex()}\n".encode())
        file.flush()
        os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(file.name, path)
    sync(path.parent)
