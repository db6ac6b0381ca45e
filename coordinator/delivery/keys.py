"""Ed25519 keys in files: the secret key as PKCS 8 in PEM, readable by its owner only; beside it the public key in hex.

A coordinator has a key of its own for the role ``round``, made on first use. It also makes one for each other role,
unless it was given a root of trust, whose keys are kept elsewhere.
"""

from __future__ import annotations

from pathlib import Path

from cryptography.exceptions import InternalError, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_sdk.decoding import brief
from edge_sdk.disk import create_durably, disk_errors, write_durably
from edge_sdk.errors import ConfigurationError
from edge_sdk.protocol.signing import Role

_PUBLIC_BYTES = 32


def key_file(folder: Path, role: Role) -> Path:
    """The path of a coordinator's own key for a role."""
    return folder / f"{role.value}.key"


def own_key(folder: Path, role: Role) -> Ed25519PrivateKey:
    """Read the coordinator's own key for a role, and make it first if there is none.

    Raises ``ConfigurationError`` for a damaged key, ``StorageError`` if the disk refuses.
    """
    path = key_file(folder, role)
    if not path.exists():
        with disk_errors(path):
            folder.mkdir(parents=True, exist_ok=True)
            _create(path, None)
    key = read_key(path)
    with disk_errors(path):
        _write_public(path, key)
    return key


def held_keys(folder: Path, role: Role) -> tuple[Ed25519PrivateKey, ...]:
    """The coordinator's own key for a role, if it has one. Raises ``ConfigurationError`` for a damaged key."""
    path = key_file(folder, role)
    return (read_key(path),) if path.exists() else ()


def new_key(path: Path, passphrase: str | None = None) -> str:
    """Make a key in the file ``path`` and return its public key in hexadecimal.

    The public key is also written beside it, as ``.pub``. Raises ``ConfigurationError`` if one of the files exists
    already, or they would be one, ``StorageError`` if the disk refuses.
    """
    public = _public_file(path)
    if public == path:
        raise ConfigurationError(f"{path} has the name of a public key: give the secret one another ending")
    for file in (path, public):
        if file.exists():
            raise ConfigurationError(f"{file} exists already: choose another file")
    with disk_errors(path):
        _create(path, passphrase)
        return _write_public(path, read_key(path, passphrase))


def read_key(path: Path, passphrase: str | None = None) -> Ed25519PrivateKey:
    """Read the secret key in a file. Raises ``ConfigurationError`` if it cannot be read, decrypted, or used."""
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None if passphrase is None else passphrase.encode())
    except OSError as error:
        raise ConfigurationError(f"key {path} cannot be read: {error.strerror}") from error
    except (
        ValueError,
        TypeError,
        UnsupportedAlgorithm,
        InternalError,
    ) as error:  # of OpenSSL
        raise ConfigurationError(f"{path} is not a key, or the passphrase is wrong: {brief(error)}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigurationError(f"{path} is not an Ed25519 key: make one with `coordinator key new`")
    return key


def read_public(path: Path) -> bytes:
    """Read the raw public key, 32 bytes, from a file of 64 hexadecimal digits. Raises ``ConfigurationError``."""
    try:
        key = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except OSError as error:
        raise ConfigurationError(f"public key {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigurationError(f"public key {path} is not hexadecimal; `coordinator key new` writes one") from error
    if len(key) != _PUBLIC_BYTES:
        raise ConfigurationError(f"public key {path} has {len(key)} bytes instead of {_PUBLIC_BYTES}; copy it again")
    return key


def public_half(key: Ed25519PrivateKey) -> str:
    """The public key, with which others verify signatures, in hexadecimal."""
    return key.public_key().public_bytes_raw().hex()


def _write_public(path: Path, key: Ed25519PrivateKey) -> str:
    public = public_half(key)
    write_durably(_public_file(path), f"{public}\n".encode())
    return public


def _public_file(path: Path) -> Path:
    return path.with_suffix(".pub")


def _create(path: Path, passphrase: str | None) -> None:
    """Write a new key, all of it or nothing, and never over an existing file: half a key could never be read again."""
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase is not None:
        encryption = serialization.BestAvailableEncryption(passphrase.encode())
    pem = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )
    create_durably(path, pem)
