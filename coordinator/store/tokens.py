"""Who may use the API, and in which role."""

from __future__ import annotations

from coordinator.store import tables
from coordinator.store.records import TokenRecord
from coordinator.store.repository import Repository


class Tokens(Repository[TokenRecord]):
    """Tokens by name; what is kept of each is the digest."""

    table = tables.tokens
    record = TokenRecord

    def add(self, token: TokenRecord) -> None:
        """A new token; its name and its digest must be free."""
        self._insert(token)

    def remove(self, name: str) -> None:
        """The token is worth nothing any more."""
        self._delete(name=name)

    def get(self, name: str) -> TokenRecord | None:
        """One token, ``None`` where there is none of this name."""
        return self._one(name=name)

    def of_digest(self, digest: str) -> TokenRecord | None:
        """The token with this digest, ``None`` where there is none."""
        return self._one(digest=digest)

    def all(self) -> tuple[TokenRecord, ...]:
        """Every token by name."""
        return self._all("name")
