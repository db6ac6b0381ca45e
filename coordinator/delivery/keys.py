"""Ed25519 keys in files: the secret half as PKCS 8 in PEM, for its owner's eyes only, the public half beside it in hex.

A coordinator has a key of its own for each role, made on first use: that of ``round`` always, the others where nobody
has given it a root of trust whose keys lie elsewhere.
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
    """Where a coordinator's own key for a role lies."""
    return folder / f"{role.value}.key"


def own_key(folder: Path, role: Role) -> Ed25519PrivateKey:
    """The coordinator's own, made where there is none.

    Raises ``ConfigurationError`` for a damaged key, ``StorageError`` where the disk refuses.
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
    """The coordinator's own key for a role, where it has one."""
    path = key_file(folder, role)
    return (read_key(path),) if path.exists() else ()


def new_key(path: Path, passphrase: str | None = None) -> str:
    """Make a key in the file ``path``; its public half in hexadecimal, as it is in ``path`` with ``.pub`` at its end.

    Raises ``ConfigurationError`` where the file is there already, and ``StorageError``.
    """
    if path.exists():
        raise ConfigurationError(f"{path} is there already: name another file")
    with disk_errors(path):
        _create(path, passphrase)
        return _write_public(path, read_key(path, passphrase))


def read_key(path: Path, passphrase: str | None = None) -> Ed25519PrivateKey:
    """The secret key in a file. Raises ``ConfigurationError``."""
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
        raise ConfigurationError(f"{path} is no key, or its passphrase is another one: {brief(error)}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigurationError(f"{path} is no Ed25519 key: make one with `coordinator key new`")
    return key


def read_public(path: Path) -> bytes:
    """The raw public key in a file of 64 hexadecimal digits. Raises ``ConfigurationError``."""
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
    """What others verify by, in hexadecimal."""
    return key.public_key().public_bytes_raw().hex()


def _write_public(path: Path, key: Ed25519PrivateKey) -> str:
    public = public_half(key)
    write_durably(path.with_suffix(".pub"), f"{public}\n".encode())
    return public


def _create(path: Path, passphrase: str | None) -> None:
    """Never in place of another's: half a key would be refused for ever."""
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase is not None:
        encryption = serialization.BestAvailableEncryption(passphrase.encode())
    pem = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )
    create_durably(path, pem)
