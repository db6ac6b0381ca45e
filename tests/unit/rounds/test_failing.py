"""Why a task failed is in the store: what came of its rounds, or the error that ended its work."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from coordinator.rounds.failing import MAX_CHARACTERS, why_abandoned, words_of
from coordinator.store.database import Store
from coordinator.store.records import OfferRecord, RoundRecord
from coordinator.store.states import Outcome, Phase
from edge_sdk.elastic.submodel import Submodel
from edge_sdk.errors import ModelFormatError
from edge_sdk.protocol.messages import Failure

OFFER = OfferRecord("news", 0, "pi-4", Submodel((0,), (1,), (1,)), 1, 1.0)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(f"sqlite:///{tmp_path / 'store.sqlite'}")
    with opened.transaction() as tx:
        tx.tasks.add("news", b"", 1.0)
        for device in ("pi-4", "pi-5", "pi-6"):
            tx.devices.hello(device, "board", 1, 1.0)
    yield opened
    opened.close()


def abandoned(number: int) -> RoundRecord:
    return RoundRecord("news", number, "b" * 64, Phase.ABANDONED, 2, 1.0, 2.0, 2.0)


def test_causes_are_counted_over_all_rounds_that_came_to_nothing(store: Store) -> None:
    with store.transaction() as tx:
        for number in (1, 2):
            tx.rounds.add(abandoned(number))
            tx.offers.add(replace(OFFER, round=number, outcome=Outcome.FAILED, failure=Failure.OUT_OF_MEMORY))
            tx.offers.add(replace(OFFER, round=number, device="pi-5"))
        tx.offers.add(replace(OFFER, round=2, device="pi-6", outcome=Outcome.FAILED, detail="norm\n\x1b[31m 9e9"))
        words = why_abandoned(tx, tx.rounds.all("news"))
    assert words == (
        "its last 2 rounds had too few updates (2 out-of-memory, 2 no answer in time, 1 norm\\n\\x1b[31m 9e9)"
    )


def test_rounds_that_nobody_was_asked_in_say_so(store: Store) -> None:
    with store.transaction() as tx:
        tx.rounds.add(abandoned(1))
        assert why_abandoned(tx, tx.rounds.all("news")) == "its last 1 rounds had too few updates (nobody was asked)"


def test_error_is_kept_in_one_line_of_bounded_length() -> None:
    assert words_of(ModelFormatError("no\nweights")) == "no\\nweights"
    assert len(words_of(ModelFormatError("x" * 10_000))) == MAX_CHARACTERS
