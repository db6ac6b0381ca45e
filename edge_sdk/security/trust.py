"""What signed documents may do on this device, starting from a root of trust that its owner got out of band.

:meth:`Trust.check` verifies in this order, after TUF's client workflow (specification 1.0, section 5):

1. New roots: each is the next version, signed by a threshold of the last root's keys and of its own. Stored at once.
2. The newest root has not expired.
3. The assignment is signed by the root's round keys and is for this device. It has not expired, and is not older than
   the newest that was followed for the task.
4. The release is the one that the assignment names, byte for byte. It is signed by the root's release keys, is for this
   fleet, the task and the device's group, has not expired, and is not older than the newest that ran.
5. The release contains the assigned export.

A root with other release keys makes the device forget which release was the newest, and one with other round keys, the
newest assignment: a thief of the old keys could have used up the numbers. Documents signed by the old keys no longer
pass by then.

Expiry is judged by this device's clock, or by the time when the newest root or release was issued if that is later: a
clock that was set back, or never set, makes no document fresh again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path

import msgspec

from edge_sdk.decoding import UNDECODABLE
from edge_sdk.disk import disk_errors, write_durably
from edge_sdk.errors import ConfigurationError, ReleaseRefusedError, StorageError, UntrustedError
from edge_sdk.protocol.blobs import digest_of
from edge_sdk.protocol.messages import BlobEntry, Release
from edge_sdk.protocol.releases import Assignment, Export, Order, ReleasedModel, ReleaseManifest, Root, read, verified
from edge_sdk.protocol.signing import Envelope, opened

_log = logging.getLogger(__name__)
_DAY_S = 86400.0


class _Kept(msgspec.Struct, frozen=True):
    """What outlives the process.

    ``given`` is the digest of the owner's root, ``made_s`` when the newest trusted document was issued. ``releases``
    are the newest that ran, by slot. ``assignments`` are the newest that were followed, by task: their number, and
    whether they left a release, which counts as newer than running it.
    """

    root: bytes
    given: str
    made_s: float
    releases: dict[str, int] = {}
    assignments: dict[str, tuple[int, bool]] = {}


_files = msgspec.json.Decoder(Envelope)
_kept = msgspec.msgpack.Decoder(_Kept)


class Trust:
    """What one device trusts, stored in ``path``. ``given`` is the owner's file with a root; ``None`` trusts nothing.

    A stored root that followed from the owner's is used instead of it; if the owner gives another root, everything
    starts anew. Tasks with the same ``slot_of`` share a slot, in which the newest release of any of them counts.
    Raises ``ConfigurationError`` for a file that holds no root, ``StorageError`` if ``path`` is damaged.
    """

    def __init__(
        self,
        path: Path,
        given: Path | None,
        *,
        fleet: str,
        device: str,
        slot_of: Callable[[str], str] = lambda task: task,
    ) -> None:
        self._path, self._fleet, self._device, self._slot_of = path, fleet, device, slot_of
        self._state = None if given is None else _begun(path, given)

    @property
    def root(self) -> Root | None:
        """The newest root; ``None`` if nothing is trusted."""
        return None if self._state is None else _root_in(self._state.root)

    def newest(self, task: str) -> int:
        """The number of the newest release that ever ran in the task's slot; 0 if none did."""
        return 0 if self._state is None else self._state.releases.get(self._slot_of(task), 0)

    def ran(self, task: str, release: int) -> None:
        """Record that ``release`` runs: older ones are refused from now on. Raises ``StorageError``."""
        if self._state is not None and release > self.newest(task):
            self._keep(releases=self._state.releases | {self._slot_of(task): release})

    def check(self, message: Release) -> Order:
        """The order in ``message``, verified.

        Raises ``ReleaseRefusedError`` if the assignment can be trusted but the release cannot, ``UntrustedError`` with
        the reason for everything else, and ``StorageError``.
        """
        if self._state is None:
            raise UntrustedError("release refused: this agent has no root of trust (--root FILE)")
        self._follow_roots(message.roots)
        root = _root_in(self._state.root)
        self._check_fresh("the root of trust", root.expires_s)
        assignment = self._checked_assignment(message.envelope, root)
        try:
            order = self._order(assignment, message.manifest, root)
        except UntrustedError as error:
            raise ReleaseRefusedError(assignment.task, assignment.release, assignment.number, str(error)) from error
        newest = (assignment.number, assignment.export is None)
        if newest != self._state.assignments.get(assignment.task):
            self._keep(assignments=self._state.assignments | {assignment.task: newest})
        return order

    # -- the steps

    def _follow_roots(self, envelopes: Sequence[bytes]) -> None:
        for envelope in envelopes:
            known = self.root
            if known is None or read(Root, opened(envelope).payload).version <= known.version:
                continue
            new = verified(Root, envelope, known.root)
            if new.version != known.version + 1:
                raise UntrustedError(f"root {new.version} came after root {known.version}: one between them is missing")
            verified(Root, envelope, new.root)
            self._adopt(known, new, envelope)
            _log.info("root of trust %d replaces root %d", new.version, known.version)

    def _adopt(self, known: Root, new: Root, envelope: bytes) -> None:
        """Store the new root, without what its change of keys makes void."""
        if new.release != known.release:
            self._keep(root=envelope, releases={}, made_s=new.issued_s, **_voided(known, new))
        elif self._state is not None:
            self._keep(root=envelope, made_s=max(new.issued_s, self._state.made_s), **_voided(known, new))

    def _checked_assignment(self, envelope: bytes, root: Root) -> Assignment:
        assignment = verified(Assignment, envelope, root.round)
        if (assignment.fleet, assignment.device) != (self._fleet, self._device):
            raise UntrustedError(
                f"assignment {assignment.number} is for {assignment.fleet}/{assignment.device}, "
                f"not {self._fleet}/{self._device}"
            )
        newest = (0, False) if self._state is None else self._state.assignments.get(assignment.task, (0, False))
        if (assignment.number, assignment.export is None) < newest:
            raise UntrustedError(f"assignment {assignment.number} of {assignment.task} is older than {newest[0]}")
        self._check_fresh(f"assignment {assignment.number} of {assignment.task}", assignment.expires_s)
        return assignment

    def _order(self, assignment: Assignment, envelope: bytes, root: Root) -> Order:
        if assignment.export is None:
            return Order(assignment)
        manifest = verified(ReleaseManifest, envelope, root.release)
        _check_same(assignment, manifest, digest_of(opened(envelope).payload))
        if manifest.release < self.newest(manifest.task):
            newest = self.newest(manifest.task)
            raise UntrustedError(f"release {manifest.release} of {manifest.task} is older than {newest}, which ran")
        self._check_fresh(f"release {manifest.release} of {manifest.task}", manifest.expires_s)
        export = next((known for known in manifest.exports if known.name == assignment.export), None)
        if export is None:
            raise UntrustedError(f"release {manifest.release} of {manifest.task} has no export {assignment.export}")
        self._keep_time(manifest.issued_s)
        return Order(assignment, _model_of(manifest, export, assignment.address))

    # -- time

    def _check_fresh(self, what: str, expires_s: float) -> None:
        clock_s, made_s = time.time(), 0.0 if self._state is None else self._state.made_s
        if clock_s < made_s - _DAY_S:
            _log.warning(
                "this device's clock says %s, but what it trusts was signed on %s: set the clock",
                _day(clock_s),
                _day(made_s),
            )
        if max(clock_s, made_s) >= expires_s:
            raise UntrustedError(
                f"{what} has expired on {_day(expires_s)}; this device's clock says {_day(clock_s)}: "
                "set it if it is wrong"
            )

    def _keep_time(self, issued_s: float) -> None:
        if self._state is not None and issued_s > self._state.made_s:
            self._keep(made_s=issued_s)

    def _keep(self, **changes: object) -> None:
        if self._state is not None:
            changed = msgspec.structs.replace(self._state, **changes)
            _write(self._path, changed)
            self._state = changed


def load_root(file: Path) -> bytes:
    """The envelope of the root in a file of JSON. Raises ``ConfigurationError``."""
    try:
        return parse_root(file.read_bytes(), str(file))
    except OSError as error:
        raise ConfigurationError(
            f"root of trust {file} cannot be read ({error.strerror}); copy root.json from the coordinator"
        ) from error


def parse_root(data: bytes, place: str) -> bytes:
    """The envelope of the root in JSON; ``place`` names it in errors. Raises ``ConfigurationError``."""
    try:
        envelope = msgspec.msgpack.encode(_files.decode(data))
        _root_in(envelope)
    except (*UNDECODABLE, ValueError, UntrustedError) as error:
        raise ConfigurationError(
            f"{place} holds no root of trust ({error}); copy root.json from the coordinator"
        ) from error
    return envelope


def _begun(path: Path, given: Path) -> _Kept:
    """The stored state, or a new one if the owner gives another root than the one that it began with."""
    envelope = load_root(given)
    fresh = _Kept(envelope, digest_of(envelope), _root_in(envelope).issued_s)
    kept = _read(path)
    if kept is None or kept.given != fresh.given:
        _write(path, fresh)
        return fresh
    return kept


def _read(path: Path) -> _Kept | None:
    with disk_errors(path):
        data = path.read_bytes() if path.exists() else b""
    if not data:
        return None
    digest, state = data[:64], data[64:]
    if digest != digest_of(state).encode():
        raise StorageError(f"{path} is damaged: remove it to trust what --root says, and forget which releases ran")
    return _kept.decode(state)


def _write(path: Path, state: _Kept) -> None:
    data = msgspec.msgpack.encode(state)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, digest_of(data).encode() + data)


def _root_in(envelope: bytes) -> Root:
    return read(Root, opened(envelope).payload)


def _voided(known: Root, new: Root) -> dict[str, dict[str, tuple[int, bool]]]:
    return {} if new.round == known.round else {"assignments": {}}


def _check_same(assignment: Assignment, manifest: ReleaseManifest, digest: str) -> None:
    if digest != assignment.manifest:
        raise UntrustedError(f"assignment {assignment.number} is of another release than came with it")
    if (manifest.fleet, manifest.task, manifest.release) != (assignment.fleet, assignment.task, assignment.release):
        raise UntrustedError(
            f"release {manifest.release} is of {manifest.fleet}/{manifest.task}, "
            f"the assignment of release {assignment.release} of {assignment.fleet}/{assignment.task}"
        )
    if manifest.groups and assignment.group not in manifest.groups:
        raise UntrustedError(
            f"release {manifest.release} is for groups {', '.join(manifest.groups)}; "
            f"this device is in {assignment.group}"
        )


def _model_of(manifest: ReleaseManifest, export: Export, address: str | None) -> ReleasedModel:
    return ReleasedModel(
        release=manifest.release,
        task=manifest.task,
        submodel=export.submodel,
        labels=manifest.labels,
        max_tokens=manifest.max_tokens,
        pixel_mean=manifest.pixel_mean,
        pixel_std=manifest.pixel_std,
        manifest=tuple(_addressed(entry, address) for entry in export.manifest),
        onnxruntime=export.onnxruntime,
    )


def _addressed(entry: BlobEntry, address: str | None) -> BlobEntry:
    return entry if address is None else msgspec.structs.replace(entry, address=f"{address}/{entry.digest}")


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).date().isoformat()
