"""Everything here that reads bytes of others, in one table, of which each module has a room."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from tests.support.parsers.parser import Parser

__all__ = ["Parser", "all_parsers", "parser_called"]
_ROOMS = ("wire", "trust", "web", "device", "coordinator")


def all_parsers(folder: Path) -> dict[str, Parser]:
    """By name; ``folder`` is for the files that they read."""
    return {parser.name: parser for parser in _parsers(folder)}


def parser_called(name: str, folder: Path) -> Parser:
    """The one of this name; of the rooms behind its own nothing is loaded."""
    return next(parser for parser in _parsers(folder) if parser.name == name)


def _parsers(folder: Path) -> Iterator[Parser]:
    for room in _ROOMS:
        own = folder / room
        own.mkdir()
        yield from import_module(f"{__name__}.{room}").parsers(own)
