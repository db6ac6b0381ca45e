"""How a command writes its log: as lines for people, or as one JSON object per line for log collectors.

A log call may say in ``extra`` what it is about, under the names in :data:`FIELDS`; other extras are not written.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import datetime, timezone
from enum import Enum

from edge_sdk.errors import VISIBLE, RaffmError

FIELDS = ("task", "round", "device")


class LogFormat(str, Enum):
    """The form of a log line."""

    TEXT = "text"
    JSON = "json"


class TextLines(logging.Formatter):
    """One line for people; escaping keeps what a peer said from faking a line or steering the terminal."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """The line, before a traceback."""
        return super().formatMessage(record).translate(VISIBLE)


class JsonLines(logging.Formatter):
    """``time`` (UTC), ``level``, ``logger`` and ``message``, :data:`FIELDS` where they are known, and ``exception``."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        when = datetime.fromtimestamp(record.created, timezone.utc)
        line = {
            "time": when.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: value for name, value in vars(record).items() if name in FIELDS}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def log_to_stderr(package: str, form: LogFormat) -> None:
    """Log ``package`` from level INFO on, and warnings of everything else; as JSON, Python's own warnings too."""
    handler = logging.StreamHandler(sys.stderr)
    is_json = form is LogFormat.JSON
    handler.setFormatter(JsonLines() if is_json else TextLines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.captureWarnings(is_json)
    logging.getLogger(package).setLevel(logging.INFO)


def because(said: str, reason: str) -> str:
    """What is said, and after a colon why, if there is a reason."""
    return f"{said}: {reason}" if reason else said


def complain(command: str, error: RaffmError) -> None:
    """Report the error that ends ``command`` on standard error, in the form that its log has."""
    if any(isinstance(handler.formatter, JsonLines) for handler in logging.getLogger().handlers):
        logging.getLogger(command).error("%s", error)
    else:
        sys.stderr.write(f"{command}: {error}\n")
