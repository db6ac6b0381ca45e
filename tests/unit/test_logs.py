"""The log as JSON: one object a line, with what it is about, and with nothing that was not meant for it."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from datetime import datetime, timezone

import pytest

from edge_sdk.logs import JsonLines, TextLines

_PROGRAM = """
import logging, warnings
from edge_sdk.errors import ConfigurationError
from edge_sdk.logs import LogFormat, complain, log_to_stderr
log_to_stderr("edge_sdk", LogFormat({form!r}))
logging.getLogger("edge_sdk.agent.work").info("round %d of %s", 3, "news", extra={{"task": "news", "round": 3}})
logging.getLogger("elsewhere").info("of no interest")
logging.getLogger("elsewhere").warning("two\\nlines")
warnings.warn("old", stacklevel=1)
complain("edge-agent", ConfigurationError("a wrong option"))
"""


def written(form: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM.format(form=form)], capture_output=True, text=True, check=True
    )
    assert not done.stdout
    return done.stderr.splitlines()


def test_every_line_is_one_object() -> None:
    work, elsewhere, warning, error = map(json.loads, written("json"))
    age_s = (datetime.now(timezone.utc) - datetime.fromisoformat(work.pop("time"))).total_seconds()
    assert -1 < age_s < 60
    assert work == {
        "level": "info",
        "logger": "edge_sdk.agent.work",
        "message": "round 3 of news",
        "task": "news",
        "round": 3,
    }
    assert (elsewhere["level"], elsewhere["message"]) == ("warning", "two\nlines")
    assert warning["logger"] == "py.warnings"
    assert (error["level"], error["logger"], error["message"]) == ("error", "edge-agent", "a wrong option")


def test_text_is_as_it_was() -> None:
    lines = written("text")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} round 3 of news", lines[0])
    assert lines[-1] == "edge-agent: a wrong option"


@pytest.mark.parametrize("name", ["password", "payload", "color_message"])
def test_what_is_no_field_is_not_written(name: str) -> None:
    record = logging.makeLogRecord({"msg": "hello", "device": "pi", name: "canary"})
    line = json.loads(JsonLines().format(record))
    assert "canary" not in json.dumps(line)
    assert line["device"] == "pi"


def test_exception_is_part_of_its_line() -> None:
    try:
        int("broken")
    except ValueError:
        record = logging.LogRecord("a", logging.ERROR, __file__, 1, "it failed", None, sys.exc_info())
    text = JsonLines().format(record)
    assert "\n" not in text
    assert json.loads(text)["exception"].endswith("ValueError: invalid literal for int() with base 10: 'broken'")


def test_words_of_a_peer_neither_begin_a_line_nor_steer_the_terminal() -> None:
    said = "no memory\n2026-01-01 00:00:00 round 3 is closed\r\x1b[2J\x9b1m\u202egnorw\u2028ü 😀"
    record = logging.LogRecord("coordinator", logging.WARNING, "", 0, "%s gives up: %s", ("pi", said), None)
    line = TextLines().format(record)
    assert line.endswith(
        r"pi gives up: no memory\n2026-01-01 00:00:00 round 3 is closed\r\x1b[2J\x9b1m\u202egnorw\u2028ü 😀"
    )
    assert len(line.splitlines()) == 1


def test_traceback_keeps_its_lines() -> None:
    try:
        int("one")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "", 0, "it", (), sys.exc_info())
    _, first, *_, last = TextLines().format(record).splitlines()
    assert first.startswith("Traceback")
    assert last.startswith("ValueError")
