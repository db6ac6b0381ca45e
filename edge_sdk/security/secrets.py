"""Secrets come from files alone: not from options, which others see, nor from settings, which are copied about."""

from __future__ import annotations

from pathlib import Path

from edge_sdk.errors import ConfigurationError


def read_secret(path: Path) -> str:
    """What is in a password file, without the white space around it. Raises ``ConfigurationError``."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigurationError(f"password file {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:  # whose words would hold some of it
        raise ConfigurationError(f"password file {path} is not text: write it again, in UTF-8") from None
