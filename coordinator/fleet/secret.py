"""Secrets that are shown once: 256 random bits, so that a SHA-256 tells nothing of them and needs no salt."""

from __future__ import annotations

import hashlib
import secrets


def new_secret(prefix: str) -> str:
    """A new one; ``prefix`` is what scanners of leaked secrets look for."""
    return prefix + secrets.token_urlsafe(32)


def digest_of(secret: str) -> str:
    """What the store keeps of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()
