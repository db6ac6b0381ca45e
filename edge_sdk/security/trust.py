"""What a signed thing may do on this device: a release is installed if signed for it, and newer than what it has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edge_sdk.errors import ConfigurationError, UntrustedError
from edge_sdk.protocol.signing import ReleaseManifest, Role, verify


def load_public_key(path: Path) -> bytes:
    """A raw Ed25519 public key (32 bytes) from a file of 64 hexadecimal digits; else ``ConfigurationError``."""
    try:
        key = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except OSError as error:
        raise ConfigurationError(
            f"release key {path} cannot be read ({error.strerror}); copy it from the coordinator"
        ) from error
    except ValueError as error:
        raise ConfigurationError(
            f"release key {path} is not hexadecimal; copy release.pub from the coordinator"
        ) from error
    if len(key) != 32:
        raise ConfigurationError(f"release key {path} has {len(key)} bytes instead of 32; copy it again")
    return key


def check_release(
    envelope: bytes, trusted: bytes | None, *, fleet: str, device: str, installed: Callable[[str], int]
) -> ReleaseManifest:
    """The manifest in ``envelope``, where the key ``trusted`` signed it for this device and it is not older.

    ``installed`` tells which release of a task runs, or ran; 0 for none. The same number passes: a report
    that was lost is asked for by sending the release again.
    Raises ``UntrustedError`` with the reason.
    """
    if trusted is None:
        raise UntrustedError("release refused: this agent was given no release key (--release-key FILE)")
    manifest = verify(envelope, Role.RELEASE, trusted)
    if (manifest.fleet, manifest.device) != (fleet, device):
        raise UntrustedError(
            f"release {manifest.release} is for {manifest.fleet}/{manifest.device}, not {fleet}/{device}"
        )
    newest = installed(manifest.task)
    if manifest.release < newest:
        raise UntrustedError(f"release {manifest.release} of {manifest.task} is older than {newest}, which runs")
    return manifest
