"""Templates, and the filters that write figures in them. Every value that a template inserts is escaped."""

from __future__ import annotations

import time
from datetime import datetime, timezone

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined

PATH = "/dashboard"
THEME_COOKIE = "raffm_theme"
_THEMES = ("light", "dark")
_SECTIONS = (("fleet", "Fleet"), ("rounds", "Rounds"), ("tasks", "Tasks"), ("releases", "Releases"))
UNKNOWN = "\N{EN DASH}"
"""Stands in the place of an unknown figure."""
_MINUTE_S, _HOUR_S, _DAY_S = 60, 3600, 86400


def page(request: Request, template: str, *, code: int = 200, own: str = "", **values: object) -> HTMLResponse:
    """Render a page. The template gets ``values``, and what all pages need, such as the visitor and the theme.

    ``own`` is the page's own address, used if this is the answer to a form that was sent to another address.
    """
    theme = request.cookies.get(THEME_COOKIE, "")
    shared = {
        "at": PATH,
        "sections": _SECTIONS,
        "visitor": getattr(request.state, "visitor", None),
        "theme": theme if theme in _THEMES else "system",
        "now_s": time.time(),
        "section": "",
        "told": "",
        "own": own if request.method == "POST" else "",
    }
    return HTMLResponse(_templates.get_template(template).render(shared | values), code)


def mib(count_bytes: float | None) -> str:
    """Bytes as MiB, with thousands separated by commas."""
    return UNKNOWN if count_bytes is None else f"{count_bytes / 2**20:,.0f}"


def size(count_bytes: float) -> str:
    """Bytes in the binary unit that leaves one to three digits before the point."""
    value, unit = float(count_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1000:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"


def percent(share: float | None, digits: int = 0) -> str:
    """A share from 0 to 1, in percent."""
    return UNKNOWN if share is None else f"{100 * share:.{digits}f} %"


def duration(seconds: float) -> str:
    """Seconds as a whole number of the largest unit that fits: days, hours, minutes or seconds."""
    whole = max(0, round(seconds))
    for unit_s, word in ((_DAY_S, "d"), (_HOUR_S, "h"), (_MINUTE_S, "min")):
        if whole >= unit_s:
            return f"{whole // unit_s} {word}"
    return f"{whole} s"


def exactly(seconds: float) -> str:
    """A duration that somebody has set, in seconds, in the largest unit of which it is a whole number."""
    units = ((_DAY_S, "d"), (_HOUR_S, "h"), (_MINUTE_S, "min"))
    unit_s, word = next(((unit_s, word) for unit_s, word in units if seconds and not seconds % unit_s), (1, "s"))
    return f"{seconds / unit_s:.10g} {word}"


def share(part: float) -> str:
    """A share from 0 to 1 that somebody has set, in percent, without rounding."""
    return f"{100 * part:.10g} %"


def since(at_s: float, now_s: float) -> str:
    """How long ago ``at_s`` was."""
    return "now" if now_s - at_s < 1 else f"{duration(now_s - at_s)} ago"


def moment(at_s: float) -> str:
    """A time in seconds since the epoch, in UTC."""
    return datetime.fromtimestamp(at_s, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")


def count(number: float) -> str:
    """A number with thousands separated by commas."""
    return f"{number:,.0f}"


def millions(number: float) -> str:
    """A number of parameters, in millions or thousands."""
    return f"{number / 1e6:,.1f} M" if number >= 1e6 else f"{number / 1e3:,.1f} k"


_templates = Environment(
    loader=PackageLoader("coordinator.dashboard"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_templates.filters.update(
    {one.__name__: one for one in (mib, size, percent, duration, exactly, share, since, moment, count, millions)}
)
