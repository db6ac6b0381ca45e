"""Enrolment and revocation of devices: the operators' part, and the one request that a device makes over HTTP.

A device has nothing but a one-time token. Its request is limited in size while it is being read, and is checked in the
order that :mod:`coordinator.fleet.enrolment` gives.
"""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path as StateDir
from typing import Annotated

import msgspec
from cryptography.hazmat.primitives.serialization import Encoding
from fastapi import APIRouter, HTTPException, Path, Request, Response, status
from fastapi.concurrency import run_in_threadpool

from coordinator.api.asking import (
    PROBLEMS,
    WAIT,
    Admin,
    After,
    Answers,
    Guarded,
    Limit,
    Name,
    Opened,
    Operator,
    Secured,
    Viewer,
    known_or_404,
    listed,
)
from coordinator.api.schemas import Certificate, Enrolment, EnrolmentSecret, NewEnrolment, Page, Problem, Revocation
from coordinator.delivery.roots import ensure_root
from coordinator.fleet.cutting import cut_off, tell_broker
from coordinator.fleet.devices import known_device
from coordinator.fleet.enrolment import enrol, withdraw_enrolment
from coordinator.fleet.folder import Fleet, open_fleet
from coordinator.fleet.joining import new_token
from coordinator.fleet.revocation import revoke_device
from coordinator.store.database import Store
from edge_sdk.errors import BrokerUnreachableError, MalformedMessageError, ProtocolError, UntrustedError
from edge_sdk.protocol.identity import MAX_ENROLMENT_BYTES, Enrolled
from edge_sdk.protocol.identity import Enrolment as Asked

_log = logging.getLogger(__name__)
_PATIENCE_S = 10.0
_PEM = "application/x-pem-file"
_asked = msgspec.json.Decoder(Asked)
enrolling = APIRouter(tags=["enrolling"])
identities = APIRouter(tags=["identities"], responses=PROBLEMS)
_refusals: Answers = {**{code: {"model": Problem} for code in (400, 401, 404, 408, 413)}, **WAIT}


# -- devices


@enrolling.get(
    "/enroll/authority", response_class=Response, responses={200: {"content": {_PEM: {}}}, 404: PROBLEMS[404], **WAIT}
)
def show_authority(fleet: Secured) -> Response:
    """The CA's certificate, which devices trust. It proves nothing by itself: compare its SHA-256 fingerprint."""
    return Response(fleet.authority.certificate_pem, media_type=_PEM)


@enrolling.post("/enroll", responses=_refusals)
async def enroll(store: Opened, fleet: Secured, guard: Guarded, request: Request) -> Response:
    """Issue a device's first certificate for a one-time token (as bearer): section 10 of the protocol."""
    if fleet.settings.is_open:
        raise HTTPException(status.HTTP_404_NOT_FOUND, "this fleet is open: its devices log in with tokens")
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    secret = given if scheme.lower() == "bearer" else ""
    guard.require_guess(request, secret)
    try:
        body = await asyncio.wait_for(_body_of(request), _PATIENCE_S)
    except asyncio.TimeoutError as error:
        raise HTTPException(status.HTTP_408_REQUEST_TIMEOUT, f"no request within {_PATIENCE_S:.0f} s") from error
    try:
        told = await run_in_threadpool(_enrolled, store, fleet, secret, body)
    except UntrustedError:
        guard.missed(request, secret)
        raise
    return Response(msgspec.json.encode(told), media_type="application/json")


async def _body_of(request: Request) -> bytes:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_ENROLMENT_BYTES:
            detail = f"an enrolment request has at most {MAX_ENROLMENT_BYTES} bytes"
            raise HTTPException(status.HTTP_413_CONTENT_TOO_LARGE, detail)
    return bytes(body)


def _enrolled(store: Store, fleet: Fleet, secret: str, body: bytes) -> Enrolled:
    try:
        asked = _asked.decode(body)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise MalformedMessageError(f"the enrolment request cannot be read: {error}") from error
    try:
        made = enrol(store, fleet, secret, asked, time.time())
    except ProtocolError as error:
        _log.warning("%s is not enrolled: %s", asked.device, error)
        raise
    _log.info("%s is enrolled", asked.device)
    with store.reading() as tx:
        has_others = len(tx.certificates.of_device(asked.device)) > 1
    if has_others:
        tell_broker(store, fleet)
    return Enrolled(
        certificate=made.public_bytes(Encoding.PEM).decode(),
        broker=fleet.settings.broker,
        fleet=fleet.settings.name,
        root=ensure_root(store, fleet.state_dir, time.time()).read_text(encoding="utf-8"),
    )


# -- operators


@identities.get("/enrolments", dependencies=[Viewer])
def list_enrolments(store: Opened, limit: Limit = 100, after: After = None) -> Page[Enrolment]:
    """The enrolment tokens without their secrets, oldest first, and which device used each."""
    with store.reading() as tx:
        some, more = listed(tx.enrolments.all(), lambda known: known.id, limit, after)
    return Page(items=[Enrolment.model_validate(known) for known in some], after=more)


@identities.post("/enrolments", status_code=status.HTTP_201_CREATED)
def create_enrolment(store: Opened, fleet: Secured, who: Admin, wanted: NewEnrolment) -> EnrolmentSecret:
    """Create an enrolment token; in an open fleet, a new password of the device at the broker."""
    names = {"device": wanted.device, "group": wanted.group}
    secret, line = new_token(store, fleet, **names, hours=wanted.hours, now_s=time.time(), who=who.name)
    return EnrolmentSecret(secret=secret, command=line)


@identities.delete("/enrolments/{token}", status_code=status.HTTP_204_NO_CONTENT)
def delete_enrolment(store: Opened, who: Admin, token: Annotated[str, Path(pattern="^[0-9a-f]{12}$")]) -> None:
    """Withdraw an enrolment token that has not been used."""
    withdraw_enrolment(store, token, time.time(), who.name)


@identities.get("/devices/{device}/certificates", dependencies=[Viewer])
def list_certificates(store: Opened, device: Name, limit: Limit = 100, after: After = None) -> Page[Certificate]:
    """All certificates that a device has had, oldest first."""
    with store.reading() as tx:
        known_or_404(lambda: known_device(tx, device))
        some, more = listed(tx.certificates.of_device(device), lambda known: known.serial, limit, after)
    return Page(items=[Certificate.model_validate(known) for known in some], after=more)


@identities.post("/devices/{device}/revoke")
def revoke(store: Opened, who: Operator, device: Name, request: Request) -> Revocation:
    """Revoke a device: ignore it, drop its updates from the open round, and have the broker end its session."""
    revoke_device(store, device, time.time(), who.name)
    state_dir: StateDir | None = request.app.state.state_dir
    fleet = None if state_dir is None else open_fleet(state_dir)
    if fleet is None:
        return Revocation(
            problem="this fleet has no authority, so its broker still admits the device: change the broker's passwords"
        )
    try:
        return Revocation(cut_off_s=cut_off(store, fleet, device))
    except BrokerUnreachableError as error:
        return Revocation(problem=str(error))
