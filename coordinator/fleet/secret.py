"""Secrets that are shown once: 256 random bits, so an unsalted SHA-256 does not reveal one."""

from __future__ import annotations

import hashlib
import secrets


def new_secret(prefix: str) -> str:
    """A new secret; by its ``prefix``, scanners for leaked secrets recognise it."""
    return prefix + secrets.token_urlsafe(32)


def digest_of(secret: str) -> str:
    """The SHA-256 of a secret, hexadecimal: all that the store keeps of it."""
    return hashlib.sha256(secret.encode()).hexdigest()
