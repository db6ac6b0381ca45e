"""Everything here that reads bytes of others, in one table."""

from __future__ import annotations

from pathlib import Path

from tests.support.parsers.coordinator import coordinator_parsers
from tests.support.parsers.device import device_parsers
from tests.support.parsers.parser import Parser
from tests.support.parsers.trust import trust_parsers
from tests.support.parsers.wire import wire_parsers

__all__ = ["Parser", "all_parsers"]


def all_parsers(folder: Path) -> dict[str, Parser]:
    """By name; ``folder`` is for the files that they read."""
    rooms = {"wire": wire_parsers, "trust": trust_parsers, "device": device_parsers, "coordinator": coordinator_parsers}
    found: list[Parser] = []
    for name, parsers_of in rooms.items():
        (folder / name).mkdir()
        found += parsers_of(folder / name)
    return {parser.name: parser for parser in found}
