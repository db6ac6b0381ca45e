"""A round found again in the store is the round that was left."""

from pathlib import Path

import pytest

from coordinator.rounds.machine import DeviceFailed, Offered, RoundState, UpdateAccepted, step
from coordinator.rounds.recovery import load_round
from coordinator.store.database import Store
from coordinator.store.records import OfferRecord, RoundRecord
from coordinator.store.states import Phase
from edge_sdk.elastic.submodel import Submodel

TEN_YEARS_S = 10 * 365 * 86400.0
SUBMODEL = Submodel((0,), (1,), (1,))


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'store.sqlite'}"


def begin(store: Store, devices: str) -> RoundState:
    """The same round in the store and in memory."""
    with store.transaction() as tx:
        tx.tasks.add("news", b"", 0.0)
        tx.rounds.add(RoundRecord("news", 3, "b" * 64, Phase.COLLECTING, quorum=2, opened_s=1.0, deadline_s=601.0))
        for device in devices:
            tx.devices.hello(device, "board", 1, 0.0)
            tx.offers.add(OfferRecord("news", 3, device, SUBMODEL, 1, offered_s=1.0))
    state = RoundState("news", 3, "b" * 64, quorum=2, deadline_s=601.0)
    for device in devices:
        state = step(state, Offered(device))
    return state


def test_open_round_is_rebuilt_after_a_restart(address: str) -> None:
    store = Store(address)
    state = begin(store, "abc")
    with store.transaction() as tx:
        tx.offers.updated("news", 3, "a", 5.0, 1)
        tx.offers.failed("news", 3, "b", 6.0)
    store.close()
    again = Store(address)
    with again.reading() as tx:
        assert load_round(tx, "news", wall_s=101.0, steady_s=101.0) == step(
            step(state, UpdateAccepted("a")), DeviceFailed("b")
        )
    again.close()


def test_decided_round_is_not_open(address: str) -> None:
    store = Store(address)
    begin(store, "a")
    with store.transaction() as tx:
        tx.rounds.decide("news", 3, Phase.ABANDONED, 700.0)
        assert load_round(tx, "news", wall_s=700.0, steady_s=0.0) is None
        assert load_round(tx, "nothing", wall_s=700.0, steady_s=0.0) is None
    store.close()


@pytest.mark.parametrize(
    ("wall_s", "left_s"),
    [(1.0, 600.0), (101.0, 500.0), (601.0, 0.0), (1.0 + TEN_YEARS_S, 0.0), (1.0 - TEN_YEARS_S, 600.0)],
)
def test_clock_that_is_wrong_never_prolongs_a_round(
    address: str, caplog: pytest.LogCaptureFixture, wall_s: float, left_s: float
) -> None:
    store = Store(address)
    begin(store, "a")
    with store.reading() as tx:
        again = load_round(tx, "news", wall_s=wall_s, steady_s=7.0)
    store.close()
    assert again is not None
    assert again.deadline_s == pytest.approx(7.0 + left_s)
    assert ("was set back" in caplog.text) == (wall_s < 1.0)
