"""Decoding what others wrote: the errors that msgspec raises, under one name, and TOML within limits."""

from __future__ import annotations

import re
import sys
from typing import Any

import msgspec

from edge_sdk.errors import ConfigurationError

UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec's decoders raise: for a wrong structure, for text that is not UTF-8, for nesting that is too deep."""
TomlTable = dict[str, Any]
_MAX_QUOTED = 300  # characters
MAX_TOML_BYTES = 64 * 1024
_DEEP_KEY = re.compile(r"""(?:\.[ \t]*(?:[\w-]+|"[^"\n]*"|'[^'\n]*')[ \t]*){30}""")
"""A dotted key of more than 30 parts: with some thousands of them, tomllib takes seconds and gigabytes."""


def brief(error: Exception) -> str:
    """The first line of an error's text, at most 300 characters: libraries quote what a peer sent, however long."""
    return str(error).partition("\n")[0][:_MAX_QUOTED]


def parse_toml(data: bytes, place: str) -> TomlTable:
    """The table in the TOML file ``data``; ``place`` names the file in errors.

    Raises ``ConfigurationError`` where it is not TOML, is larger than 64 KiB or has a key of more than 30 parts.
    """
    if sys.version_info >= (3, 11):
        import tomllib  # noqa: PLC0415 - messages are decoded where nobody reads TOML
    else:
        import tomli as tomllib  # noqa: PLC0415
    if len(data) > MAX_TOML_BYTES:
        raise ConfigurationError(f"{place} has {len(data)} bytes; a settings file has at most {MAX_TOML_BYTES}")
    try:
        text = data.decode("utf-8")
        if _DEEP_KEY.search(text):
            raise ConfigurationError(f"{place} has a key of more than 30 parts; use a table instead")
        table: TomlTable = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{place} is not TOML: {error}") from error
    return table
