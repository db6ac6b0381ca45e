"""The tokens of the API, and the role of each."""

from __future__ import annotations

from coordinator.store import tables
from coordinator.store.records import TokenRecord
from coordinator.store.repository import Repository


class Tokens(Repository[TokenRecord]):
    """Tokens by name; only the digest of each is stored."""

    table = tables.tokens
    record = TokenRecord

    def add(self, token: TokenRecord) -> None:
        """Add a token; its name and its digest must be free."""
        self._insert(token)

    def remove(self, name: str) -> None:
        """Delete a token, which is worthless from then on."""
        self._delete(name=name)

    def get(self, name: str) -> TokenRecord | None:
        """The token with this name, or ``None`` if there is none."""
        return self._one(name=name)

    def of_digest(self, digest: str) -> TokenRecord | None:
        """The token with this digest, or ``None`` if there is none."""
        return self._one(digest=digest)

    def all(self) -> tuple[TokenRecord, ...]:
        """Every token, by name."""
        return self._all("name")
