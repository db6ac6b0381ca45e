"""What `coordinator device token` and `device tokens` say where they have nothing to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from coordinator.cli import app
from coordinator.store.opening import open_store
from edge_sdk.errors import ConfigurationError
from tests.support.secured import new_fleet


def typed(state_dir: Path, *words: str) -> Result:
    return CliRunner().invoke(app, ["device", *words, "--state-dir", str(state_dir)])


def test_hours_of_a_password_are_refused(tmp_path: Path) -> None:
    new_fleet(tmp_path, is_open=True)
    refused = typed(tmp_path, "token", "--device", "pi-5", "--hours", "1")
    assert isinstance(refused.exception, ConfigurationError)
    assert "does not expire: leave out --hours" in str(refused.exception)
    assert typed(tmp_path, "token", "--device", "pi-5").exit_code == 0


def test_one_time_token_lasts_a_day_where_nothing_is_said(tmp_path: Path) -> None:
    new_fleet(tmp_path)
    assert typed(tmp_path, "token").exit_code == 0
    store = open_store(tmp_path)
    with store.reading() as tx:
        (made,) = tx.enrolments.all()
    store.close()
    assert made.expires_s - made.created_s == pytest.approx(24 * 3600)


@pytest.mark.parametrize(("is_open", "why"), [(True, "this fleet is open"), (None, "has no authority"), (False, "")])
def test_list_of_tokens_says_what_it_cannot_list(tmp_path: Path, is_open: bool | None, why: str) -> None:
    if is_open is not None:
        new_fleet(tmp_path, is_open=is_open)
    listed = typed(tmp_path, "tokens", "--json")
    assert (listed.exit_code, listed.stdout.strip()) == (0, "[]")
    assert why in listed.stderr
    assert len(listed.stderr.splitlines()) == bool(why)
