"""What a device does next: a pure function of what it knows and what just happened.

    IDLE ──Offer──▶ FETCHING ──all blobs here──▶ TRAINING ──update──▶ IDLE (the outbox carries the update on)
      ▲                 │                           │
      └──── Declined ◀──┴─── failure, deadline ◀────┘

Training that the owner's policy ends is declined as well, so that nobody waits for its update. If work is allowed again
while the round is still open, the device gets the same offer again and resumes from its checkpoint.

:func:`step` takes a state and an event and returns the next state and the effects to perform; it does no I/O, reads no
clock and cannot fail. :mod:`.supervisor` performs the effects. Releases are fetched and installed independently
of these phases, since serving a better model must not wait for training.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from edge_sdk.errors import ConfigurationError
from edge_sdk.protocol.messages import (
    Announce,
    BlobEntry,
    CoordinatorMessage,
    Declined,
    DeviceMessage,
    Failure,
    Offer,
    Part,
    Receipt,
    Release,
    ReleaseReport,
    Standing,
    UpdateReady,
    Wait,
)
from edge_sdk.protocol.releases import Order

_RETAINED_WITHIN_S = 1.0  # after connecting: a broker has delivered its retained messages by then


class Phase(str, Enum):
    """What the device is busy with."""

    IDLE = "idle"
    FETCHING = "fetching"
    TRAINING = "training"


@dataclass(frozen=True, slots=True)
class AgentState:
    """Everything that decides what happens next. Times are seconds on the supervisor's monotonic clock.

    ``answered`` is the last (task, round) whose update is in the outbox or settled: another offer for it is stale.
    ``offer_due_s`` is when the round ends without this device, ``ready_due_s`` when to ask for work again.
    ``missing`` and ``release_missing`` are the digests that the offer and the release still lack.
    ``announced`` is the session that the coordinator announced last. ``is_heard`` says that the coordinator has
    answered on this connection, so it knows this device.
    """

    ready_interval_s: float
    phase: Phase = Phase.IDLE
    offer: Offer | None = None
    offer_due_s: float = 0.0
    missing: frozenset[str] = frozenset()
    answered: tuple[str, int] | None = None
    release: Order | None = None
    release_missing: frozenset[str] = frozenset()
    ready_due_s: float = 0.0
    announced: int | None = None
    is_heard: bool = False


# -- what can happen


@dataclass(frozen=True, slots=True)
class Connected:
    """The link is up (again)."""


@dataclass(frozen=True, slots=True)
class Received:
    """The coordinator says something; ``present`` are the digests of the blobs that the cache already holds."""

    message: CoordinatorMessage
    present: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class ReleaseTrusted:
    """The signatures on an order, to run a release or to leave it, have been verified."""

    order: Order
    present: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class BlobFetched:
    """A blob is complete and verified in the cache."""

    digest: str


@dataclass(frozen=True, slots=True)
class BlobFailed:
    """A blob cannot be fetched."""

    digest: str
    reason: str
    failure: Failure = Failure.TRANSFER


@dataclass(frozen=True, slots=True)
class UpdateStored:
    """Training ended well: the update is a blob in the cache, the message is durable in the outbox."""

    message: UpdateReady


@dataclass(frozen=True, slots=True)
class TrainingFailed:
    """Training ended without an update."""

    failure: Failure
    detail: str
    peak_memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class ReleaseTried:
    """A released model went on trial, was confirmed, or was rolled back, as ``report`` says."""

    report: ReleaseReport


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passes."""


Event = (
    Connected
    | Received
    | ReleaseTrusted
    | BlobFetched
    | BlobFailed
    | UpdateStored
    | TrainingFailed
    | ReleaseTried
    | Tick
)


# -- what to do about it


@dataclass(frozen=True, slots=True)
class Publish:
    """Say this to the coordinator."""

    message: DeviceMessage


@dataclass(frozen=True, slots=True)
class SayHello:
    """Publish who this is, retained."""


@dataclass(frozen=True, slots=True)
class SayReady:
    """Take a snapshot of the device and, if its policy allows work, ask for some."""


@dataclass(frozen=True, slots=True)
class ResendOutbox:
    """Publish at once whatever has no receipt yet."""


@dataclass(frozen=True, slots=True)
class Fetch:
    """Pull these blobs."""

    entries: tuple[BlobEntry, ...]


@dataclass(frozen=True, slots=True)
class Train:
    """Start the training process; all its blobs are in the cache."""

    offer: Offer


@dataclass(frozen=True, slots=True)
class StopTraining:
    """End the training process; its result is no longer wanted."""


@dataclass(frozen=True, slots=True)
class Settle:
    """The update has its receipt: take it out of the outbox and drop its blob."""

    receipt: Receipt


@dataclass(frozen=True, slots=True)
class CheckRelease:
    """Verify the signed documents of a release; :class:`ReleaseTrusted` follows if they can be trusted."""

    message: Release


@dataclass(frozen=True, slots=True)
class Install:
    """Load the released model into the free slot, measure it, put it on trial."""

    order: Order


@dataclass(frozen=True, slots=True)
class Leave:
    """Go back to what ran before the release."""

    order: Order


Effect = (
    Publish
    | SayHello
    | SayReady
    | ResendOutbox
    | Fetch
    | Train
    | StopTraining
    | Settle
    | CheckRelease
    | Install
    | Leave
)
Next = tuple[AgentState, tuple[Effect, ...]]


def step(state: AgentState, event: Event, now_s: float) -> Next:  # noqa: PLR0911  one return an event
    """The next state, and what to do. ``now_s`` is a monotonic clock's reading in seconds."""
    match event:
        case Connected():
            return _ask_now(replace(state, is_heard=False), now_s, SayHello(), ResendOutbox())
        case Received(message, present):
            state = replace(state, is_heard=state.is_heard or not isinstance(message, Announce))
            return _receive(state, message, present, now_s)
        case ReleaseTrusted(order, present):
            return _begin_release(state, order, present)
        case BlobFetched(digest):
            return _fetched(state, digest)
        case BlobFailed():
            return _unfetchable(state, event, now_s)
        case UpdateStored(message):
            answered = (message.task, message.round)
            return _idle(replace(state, answered=answered), now_s + state.ready_interval_s), (ResendOutbox(),)
        case TrainingFailed():
            return _give_up(state, event, now_s)
        case ReleaseTried(report):
            return _tried(state, report), (Publish(report),)
        case Tick():
            return _tick(state, now_s)


def needed(state: AgentState) -> tuple[BlobEntry, ...]:
    """The blobs of the current offer and of the release that is being installed."""
    release = None if state.release is None else state.release.model
    return tuple(entry for source in (state.offer, release) if source is not None for entry in source.manifest)


def _receive(state: AgentState, message: CoordinatorMessage, present: frozenset[str], now_s: float) -> Next:
    match message:
        case Offer():
            return _consider(state, message, present, now_s)
        case Receipt():
            return _ask_now(state, now_s, Settle(message))
        case Wait(retry_after_s=retry_after_s):
            return replace(state, ready_due_s=now_s + retry_after_s), ()
        case Release():
            return state, (CheckRelease(message),)
        case Announce(session=session):
            return _announced(state, session, now_s)
        case _:
            return state, ()


def _announced(state: AgentState, session: int, now_s: float) -> Next:
    """A coordinator that has just connected has missed what was sent before: send it again.

    If the coordinator was there first, the broker delivers its retained announcement right after this device connects.
    Then there is nothing to do: :class:`Connected` has sent everything.
    """
    known, state = state.announced, replace(state, announced=session)
    asked_s = state.ready_due_s - state.ready_interval_s
    is_met = known == session or (known is None and (state.is_heard or now_s < asked_s + _RETAINED_WITHIN_S))
    return (state, ()) if is_met else _ask_now(state, now_s, ResendOutbox())


def _consider(state: AgentState, offer: Offer, present: frozenset[str], now_s: float) -> Next:
    """Take an offer, unless it is being worked on or answered; a later one replaces an earlier one."""
    key = (offer.task, offer.round)
    if key == state.answered:
        return state, (ResendOutbox(),)
    if state.offer is not None and key == (state.offer.task, state.offer.round):
        return state, ()
    if problem := _flaw(offer):
        refused = Declined(task=offer.task, round=offer.round, failure=Failure.TRAINING, detail=problem[:500])
        return state, (Publish(refused),)
    stop: tuple[Effect, ...] = (StopTraining(),) if state.phase is Phase.TRAINING else ()
    lacking = tuple(entry for entry in offer.manifest if entry.digest not in present)
    missing = frozenset(entry.digest for entry in lacking)
    state = replace(state, offer_due_s=now_s + offer.deadline_s)
    if not missing:
        return replace(state, phase=Phase.TRAINING, offer=offer, missing=missing), (*stop, Train(offer))
    return replace(state, phase=Phase.FETCHING, offer=offer, missing=missing), (*stop, Fetch(lacking))


def _flaw(offer: Offer) -> str:
    """Why ``offer`` cannot be trained, in words; empty if it can."""
    lacking = {Part.WEIGHTS, Part.FROZEN} - {entry.part for entry in offer.manifest}
    if lacking:
        return f"the offer's manifest lacks {', '.join(sorted(part.value for part in lacking))}"
    try:
        for submodel in (offer.submodel, *offer.nested):
            submodel.check(offer.architecture)
    except ConfigurationError as error:
        return str(error)
    return ""


def _begin_release(state: AgentState, order: Order, present: frozenset[str]) -> Next:
    is_under_way = state.release is not None and state.release.assignment.number == order.assignment.number
    if order.model is None:  # the release is to be left, so fetching it is pointless
        kept = state if not is_under_way else replace(state, release=None, release_missing=frozenset())
        return kept, (Leave(order),)
    if is_under_way:  # an assignment that is repeated keeps its number; only its expiry is later
        return state, ()
    lacking = tuple(entry for entry in order.model.manifest if entry.digest not in present)
    state = replace(state, release=order, release_missing=frozenset(entry.digest for entry in lacking))
    return state, (Fetch(lacking) if lacking else Install(order),)


def _fetched(state: AgentState, digest: str) -> Next:
    effects: list[Effect] = []
    if digest in state.missing:
        offer = state.offer
        state = replace(state, missing=state.missing - {digest})
        if not state.missing and offer is not None:
            state = replace(state, phase=Phase.TRAINING)
            effects.append(Train(offer))
    if digest in state.release_missing:
        state = replace(state, release_missing=state.release_missing - {digest})
        if not state.release_missing and state.release is not None:
            effects.append(Install(state.release))
    return state, tuple(effects)


def _unfetchable(state: AgentState, failed: BlobFailed, now_s: float) -> Next:
    effects: tuple[Effect, ...] = ()
    if failed.digest in state.release_missing and state.release is not None:
        report = state.release.report(Standing.ROLLED_BACK, failed.reason)
        state, effects = replace(state, release=None, release_missing=frozenset()), (Publish(report),)
    if failed.digest in state.missing:
        state, more = _give_up(state, TrainingFailed(failed.failure, failed.reason), now_s)
        effects += more
    return state, effects


def _give_up(state: AgentState, failed: TrainingFailed, now_s: float) -> Next:
    """Decline the offer. After running out of memory ask again at once, for a smaller submodel; else pause first.

    If the examples are at fault, the detail is withheld: it could quote them, and they stay on the device.
    """
    if state.offer is None:
        return state, ()
    declined = Declined(
        task=state.offer.task,
        round=state.offer.round,
        failure=failed.failure,
        detail="" if failed.failure is Failure.EXAMPLES else failed.detail[:500],
        peak_memory_bytes=failed.peak_memory_bytes,
    )
    pause_s = 0.0 if failed.failure is Failure.OUT_OF_MEMORY else state.ready_interval_s
    return _idle(state, now_s + pause_s), (Publish(declined),)


def _tried(state: AgentState, report: ReleaseReport) -> AgentState:
    """Forget the release that ``report`` is about; one of another task that arrived meanwhile stays."""
    if state.release is None or state.release.assignment.number != report.assignment:
        return state
    return replace(state, release=None, release_missing=frozenset())


def _tick(state: AgentState, now_s: float) -> Next:
    """Ask for work again from time to time, so that a lost offer or a lost coordinator does not block the device.

    As long as there is no answer the hello may have been lost, and a coordinator does not answer devices that it does
    not know: so the hello is repeated, too.
    """
    if state.phase is not Phase.IDLE and now_s >= state.offer_due_s:
        late = TrainingFailed(Failure.DEADLINE, "the round ended before this device was done")
        state, effects = _give_up(state, late, now_s)
        return state, (StopTraining(), *effects)
    if state.phase is not Phase.IDLE or now_s < state.ready_due_s:
        return state, ()
    return _ask_now(state, now_s) if state.is_heard else _ask_now(state, now_s, SayHello())


def _ask_now(state: AgentState, now_s: float, *before: Effect) -> Next:
    if state.phase is not Phase.IDLE:
        return state, before
    return replace(state, ready_due_s=now_s + state.ready_interval_s), (*before, SayReady())


def _idle(state: AgentState, ready_due_s: float) -> AgentState:
    return replace(state, phase=Phase.IDLE, offer=None, missing=frozenset(), ready_due_s=ready_due_s)
