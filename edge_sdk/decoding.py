"""What others wrote and cannot be read, however it cannot: what msgspec and TOML raise, under one name each."""

from __future__ import annotations

import re
import sys
from typing import Any

import msgspec

from edge_sdk.errors import ConfigurationError

UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoders of msgspec raise: of a wrong shape, of text that is no UTF-8, of what nests too deeply."""
TomlTable = dict[str, Any]
_MOST_QUOTED = 300
MAX_TOML_BYTES = 64 * 1024
_DEEP_KEY = re.compile(r"""(?:\.[ \t]*(?:[\w-]+|"[^"\n]*"|'[^'\n]*')[ \t]*){30}""")
"""From some thousand parts on a key takes tomllib seconds and gigabytes."""


def told(error: Exception) -> str:
    """What is wrong, in a few words: an error of msgspec quotes names, which whoever sent them may have made long."""
    return str(error)[:_MOST_QUOTED]


def parse_toml(data: bytes, place: str) -> TomlTable:
    """The table in a TOML file, which ``place`` names. ``ConfigurationError`` where it is none, or a monstrous one."""
    if sys.version_info >= (3, 11):
        import tomllib  # noqa: PLC0415 - messages are decoded where nobody reads TOML
    else:
        import tomli as tomllib  # noqa: PLC0415
    if len(data) > MAX_TOML_BYTES:
        raise ConfigurationError(f"{place} has {len(data)} bytes; more than {MAX_TOML_BYTES} are no settings")
    try:
        text = data.decode("utf-8")
        if _DEEP_KEY.search(text):
            raise ConfigurationError(f"{place} has a key of more than 30 parts; name a table instead")
        table: TomlTable = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{place} is not TOML: {error}") from error
    return table
