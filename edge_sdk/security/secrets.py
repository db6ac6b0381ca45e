"""Secrets come only from files: options are visible to other users, and settings files get copied around."""

from __future__ import annotations

from pathlib import Path

from edge_sdk.errors import ConfigurationError


def read_secret(path: Path) -> str:
    """What is in a password file, without the white space around it. Raises ``ConfigurationError``."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigurationError(f"password file {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:  # its text would quote some of the secret
        raise ConfigurationError(f"password file {path} is not text: write it again, in UTF-8") from None
