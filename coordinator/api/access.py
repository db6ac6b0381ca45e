"""API tokens: made once, shown once, stored as a digest. A token's role says what its bearer may do."""

from __future__ import annotations

import math

from coordinator.fleet.secret import digest_of, new_secret
from coordinator.store.database import Store, Transaction
from coordinator.store.records import TokenRecord
from coordinator.store.states import AccessRole
from edge_sdk.errors import ConfigurationError
from edge_sdk.protocol.topics import check_name

_PREFIX = "raffm_"
_DAY_S = 86400.0
_MAX_DAYS = 36500


def make_token(store: Store, name: str, role: AccessRole, days: float | None, now_s: float, who: str) -> str:
    """Make a token that is valid for ``days``, or for ever if ``None``, and return its secret, which is not stored.

    Raises ``ConfigurationError`` for a name that is invalid or taken, and for ``days`` that are not a number or too
    many.
    """
    check_name(name, "token")
    if days is not None and (math.isnan(days) or days > _MAX_DAYS):  # a token of NaN days would never expire
        raise ConfigurationError(f"a token is valid for up to {_MAX_DAYS} days, not for {days}")
    secret = new_secret(_PREFIX)
    expires_s = None if days is None else now_s + days * _DAY_S
    with store.transaction() as tx:
        if tx.tokens.get(name) is not None:
            raise ConfigurationError(f"token {name!r} exists: choose another name, or revoke it first")
        tx.tokens.add(TokenRecord(name, role, digest_of(secret), now_s, expires_s))
        tx.audit.note(now_s, who, f"create {role.value} token", name)
    return secret


def revoke_token(store: Store, name: str, now_s: float, who: str) -> None:
    """Delete a token, which is invalid from now on. Raises ``ConfigurationError`` if there is none with this name."""
    with store.transaction() as tx:
        if tx.tokens.get(name) is None:
            names = ", ".join(known.name for known in tx.tokens.all()) or "none"
            raise ConfigurationError(f"there is no token {name!r}; the tokens are {names}")
        tx.tokens.remove(name)
        tx.audit.note(now_s, who, "revoke token", name)


def bearer_of(tx: Transaction, secret: str, now_s: float) -> TokenRecord | None:
    """The token with this secret; ``None`` if there is none, or it has expired."""
    return bearer_by(tx, digest_of(secret), now_s)


def bearer_by(tx: Transaction, digest: str, now_s: float) -> TokenRecord | None:
    """:func:`bearer_of`, but from the digest of the secret."""
    known = tx.tokens.of_digest(digest)
    is_good = known is not None and (known.expires_s is None or now_s < known.expires_s)
    return known if is_good else None
