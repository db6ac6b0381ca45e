"""What TUF's client tests try, against a device: forged, old, frozen, mixed and misdirected releases, and rotated keys.

Each case begins with a device that runs release 3, by assignment 3. A release of the same signers that is newer passes:
that is the control of all that is refused.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_sdk.errors import ConfigurationError, ReleaseRefusedError, StorageError, UntrustedError
from edge_sdk.protocol.messages import Release
from edge_sdk.protocol.releases import Order, encoded
from edge_sdk.protocol.signing import Role, seal, sign
from edge_sdk.security.trust import Trust
from tests.support.clock import TEN_YEARS_S, skewed
from tests.support.proof import Proof
from tests.support.signed import (
    DAY_S,
    DEVICE,
    FLEET,
    TASK,
    Signers,
    enveloped,
    export,
    payload_of,
    write_root_file,
)

tuf = pytest.mark.case("S3", "of TUF's cases, those in which a device takes what it should not, or does not recover")
ANN, BOB, EVE = (Ed25519PrivateKey.generate() for _ in range(3))


class Case:
    """A device that trusts ``signers``, which have two release keys, both needed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.signers = Signers(release=[ANN, BOB], thresholds={"release": 2})
        self.file = write_root_file(folder / "root.json", self.signers.root_envelope())
        self.trust = self.restarted()
        self.run(self.message(3))

    def restarted(self) -> Trust:
        return Trust(self.folder / "trust", self.file, fleet=FLEET, device=DEVICE)

    def message(self, release: int = 4, **changes: object) -> Release:
        """Of ``signers``, with changes to the assignment."""
        return self.signers.message(self.signers.manifest(release), **changes)

    def run(self, message: Release) -> Order:
        order = self.trust.check(message)
        self.trust.ran(TASK, order.assignment.release)
        return order

    def rotated(self, **changes: object) -> tuple[Signers, bytes]:
        """The next root, signed by the old root keys and its own."""
        own = {name: getattr(self.signers, name) for name in ("root", "release", "round", "thresholds", "made_s")}
        new = Signers(**own | {"version": self.signers.version + 1} | changes)
        return new, new.root_envelope(*self.signers.root)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def refused(case: Case, message: Release, why: str) -> None:
    with pytest.raises(UntrustedError, match=why):
        case.trust.check(message)
    assert case.trust.newest(TASK) == 3
    assert case.run(case.message(5)).model is not None, "what holds still passes"


# -- what passes


@pytest.mark.parametrize("release", [3, 4, 99])
def test_newer_release_passes_and_the_same_again(case: Case, release: int) -> None:
    order = case.run(case.message(release))
    assert order.model is not None
    assert (order.model.release, order.model.manifest) == (release, export().manifest)
    assert case.trust.check(case.message(release)).model == order.model


@tuf
def test_device_without_a_root_trusts_nothing(tmp_path: Path) -> None:
    signers = Signers()
    with pytest.raises(UntrustedError, match="has no root of trust"):
        Trust(tmp_path / "trust", None, fleet=FLEET, device=DEVICE).check(signers.message(signers.manifest()))


# -- forged


FORGED: dict[str, tuple[Callable[[Case], Release], str]] = {
    "manifest signed by too few": (
        lambda case: case.signers.message(case.signers.manifest(4), signers=[ANN]),
        "1 of the 2 release keys",
    ),
    "manifest signed twice by one": (
        lambda case: case.signers.message(case.signers.manifest(4), signers=[ANN, ANN]),
        "signed twice",
    ),
    "manifest signed by nobody": (
        lambda case: case.signers.message(case.signers.manifest(4), signers=[]),
        "signed by nobody",
    ),
    "manifest signed by strangers": (
        lambda case: case.signers.message(case.signers.manifest(4), signers=[EVE, Ed25519PrivateKey.generate()]),
        "0 of the 2",
    ),
    "manifest signed by the online key": (
        lambda case: case.signers.message(case.signers.manifest(4), signers=case.signers.round),
        "0 of the 2",
    ),
    "manifest signed by the root keys": (
        lambda case: case.signers.message(case.signers.manifest(4), signers=case.signers.root),
        "0 of the 2",
    ),
    "assignment signed by a release key": (lambda case: case.message(rounds=[ANN]), "0 of the 1 round keys"),
    "assignment signed by a stranger": (lambda case: case.message(rounds=[EVE]), "0 of the 1 round keys"),
    "assignment signed by nobody": (lambda case: case.message(rounds=[]), "signed by nobody"),
    "assignment signed in the role of a release": (
        lambda case: replaced(
            case.message(),
            envelope=enveloped(
                case.signers.assignment(case.signers.manifest(4)), *case.signers.round, role=Role.RELEASE
            ),
        ),
        "signed as release",
    ),
    "manifest in the place of an assignment": (
        lambda case: replaced(case.message(), envelope=case.message().manifest),
        "signed as release",
    ),
    "manifest left out": (lambda case: replaced(case.message(), manifest=b""), "cannot be read"),
    "something else than a manifest, well signed": (
        lambda case: signed_by_all(case, b"\x81\xa1a\x01"),
        "no manifest of a release",
    ),
}


def replaced(message: Release, **changes: object) -> Release:
    return msgspec.structs.replace(message, **changes)


def signed_by_all(case: Case, payload: bytes) -> Release:
    envelope = seal(Role.RELEASE, payload, *(sign(key, Role.RELEASE, payload) for key in case.signers.release))
    return replaced(case.message(), manifest=envelope)


@tuf
@pytest.mark.parametrize("name", FORGED)
def test_forged_release_is_refused(case: Case, name: str) -> None:
    make, why = FORGED[name]
    refused(case, make(case), why)


# -- misdirected


@tuf
@pytest.mark.parametrize("changes", [{"fleet": "another"}, {"device": "another"}], ids=["fleet", "device"])
def test_assignment_of_somebody_else_is_refused(case: Case, changes: dict[str, str]) -> None:
    refused(case, case.message(**changes), f"not {FLEET}/{DEVICE}")


@tuf
@pytest.mark.parametrize("changes", [{"fleet": "another"}, {"task": "another"}], ids=["fleet", "task"])
def test_release_of_another_fleet_or_task_is_refused(case: Case, changes: dict[str, str]) -> None:
    manifest = msgspec.structs.replace(case.signers.manifest(4), **changes)
    refused(case, case.signers.message(manifest, task=TASK), "the assignment of release 4 of default/task")


@tuf
def test_release_for_another_group_is_refused(case: Case) -> None:
    manifest = case.signers.manifest(4, groups=("canary", "lab"))
    refused(case, case.signers.message(manifest), "is for groups canary, lab; this device is in default")
    ours = case.signers.manifest(6, groups=("canary", "lab"))
    assert case.trust.check(case.signers.message(ours, group="canary")).model is not None


# -- mixed


@tuf
def test_assignment_with_the_manifest_of_another_release_is_refused(case: Case) -> None:
    refused(case, replaced(case.message(4), manifest=case.message(5).manifest), "of another release")


@tuf
def test_assignment_with_another_manifest_of_the_same_number_is_refused(case: Case) -> None:
    other = case.signers.manifest(4, version="ee" * 32)
    refused(case, replaced(case.message(4), manifest=case.signers.message(other).manifest), "of another release")


@tuf
def test_assignment_whose_number_is_not_its_manifest_s_is_refused(case: Case) -> None:
    manifest = case.signers.manifest(4)
    refused(case, case.signers.message(manifest, release=6), "the assignment of release 6")


@tuf
def test_export_that_is_not_in_the_release_is_refused(case: Case) -> None:
    refused(case, case.message(4, export="m9-fp32"), "has no export m9-fp32")


# -- old


@tuf
def test_release_older_than_what_ran_is_refused(case: Case) -> None:
    refused(case, case.message(2, number=4), "release 2 of task is older than 3, which ran")


@tuf
def test_assignment_older_than_what_was_followed_is_refused(case: Case) -> None:
    refused(case, case.message(4, number=2), "assignment 2 of task is older than 3")


@tuf
def test_old_release_is_refused_after_a_restart_too(case: Case) -> None:
    case.trust = case.restarted()
    refused(case, case.message(2, number=4), "is older than 3")


@tuf
def test_order_to_run_does_not_undo_the_order_to_leave(case: Case) -> None:
    left = case.trust.check(case.message(3, export=None))
    assert left.model is None
    with pytest.raises(UntrustedError, match="assignment 3 of task is older"):
        case.trust.check(case.message(3))
    assert case.trust.check(case.message(3, export=None)) == left, "said again it is the same"


@tuf
def test_release_that_was_only_offered_stands_in_nobody_s_way(case: Case) -> None:
    case.trust.check(case.message(8))
    assert case.trust.check(case.message(4, number=9)).model is not None


# -- frozen


@tuf
@pytest.mark.parametrize("what", ["assignment", "release", "root"])
def test_what_has_expired_is_refused(case: Case, what: str) -> None:
    past_s = case.signers.made_s - 1
    if what == "assignment":
        refused(case, case.message(expires_s=past_s), "assignment 4 of task has expired")
    elif what == "release":
        manifest = case.signers.manifest(4, expires_s=past_s)
        refused(case, case.signers.message(manifest), "release 4 of task has expired")
    else:
        new, envelope = case.rotated(expires_s=past_s)
        with pytest.raises(UntrustedError, match="the root of trust has expired"):
            case.trust.check(new.message(new.manifest(4), roots=[envelope]))
        case.signers = new
        newer, next_envelope = case.rotated(expires_s=9e9)
        assert case.trust.check(newer.message(newer.manifest(4), roots=[envelope, next_envelope])).model is not None


@tuf
def test_clock_that_was_set_back_makes_nothing_fresh_again(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    made_s = case.signers.made_s
    case.run(case.signers.message(case.signers.manifest(4, issued_s=made_s + 9 * DAY_S)))
    monkeypatch.setattr("time.time", skewed(-TEN_YEARS_S))
    with pytest.raises(UntrustedError, match="has expired"):
        case.trust.check(case.message(5, expires_s=made_s + 8 * DAY_S))
    assert case.trust.check(case.message(5)).model is not None


@tuf
def test_clock_that_is_ahead_is_named(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", skewed(TEN_YEARS_S))
    with pytest.raises(UntrustedError, match=r"this device's clock says 20\d\d-\d\d-\d\d: set it if it is wrong"):
        case.trust.check(case.message(4, expires_s=case.signers.made_s + DAY_S))


# -- rotation


@tuf
def test_new_release_keys_take_the_place_of_the_old_ones(case: Case) -> None:
    new, envelope = case.rotated(release=[EVE], thresholds={})
    assert case.run(new.message(new.manifest(4), roots=[envelope])).model is not None
    with pytest.raises(UntrustedError, match="0 of the 1 release keys"):
        case.trust.check(case.message(5))


@tuf
def test_new_root_is_kept_although_the_release_with_it_is_refused(case: Case) -> None:
    _, envelope = case.rotated(release=[EVE], thresholds={})
    with pytest.raises(UntrustedError):
        case.trust.check(replaced(case.message(4), roots=(envelope,)))
    case.trust = case.restarted()
    assert case.trust.root.version == 2
    with pytest.raises(UntrustedError, match="0 of the 1 release keys"):
        case.trust.check(case.message(4))


@tuf
def test_numbers_that_old_keys_have_used_up_are_free_after_rotation(case: Case) -> None:
    """TUF's fast-forward attack: what is newest for ever is not, once its keys are gone."""
    case.run(case.message(2**53, number=2**53))
    with pytest.raises(UntrustedError, match="is older than"):
        case.trust.check(case.message(5))
    new, envelope = case.rotated(release=[EVE], round=[BOB], thresholds={})
    assert case.run(new.message(new.manifest(5), roots=[envelope])).model is not None
    assert case.trust.newest(TASK) == 5


@tuf
def test_numbers_stay_used_where_a_root_leaves_their_keys(case: Case) -> None:
    new, envelope = case.rotated(root=[EVE])
    with pytest.raises(UntrustedError, match="is older than 3"):
        case.trust.check(new.message(new.manifest(2), roots=[envelope], number=4))


@tuf
def test_time_that_old_keys_have_moved_on_is_set_back_by_rotation(case: Case) -> None:
    case.run(case.signers.message(case.signers.manifest(4, issued_s=8e9)))
    with pytest.raises(UntrustedError, match="has expired"):
        case.trust.check(case.message(5, expires_s=7e9))
    new, envelope = case.rotated(release=[EVE], thresholds={})
    order = case.trust.check(new.message(new.manifest(5), roots=[envelope], expires_s=7e9))
    assert order.model is not None


@tuf
@pytest.mark.parametrize("signed_by", ["old", "new", "strangers", "release keys"])
def test_root_that_is_not_signed_by_both_is_refused(case: Case, signed_by: str) -> None:
    new, _ = case.rotated(root=[EVE])
    document = new.root_document()
    signers = {
        "old": case.signers.root,
        "new": [EVE],
        "strangers": [Ed25519PrivateKey.generate()],
        "release keys": [ANN],
    }
    envelope = enveloped(document, *signers[signed_by])
    refused(case, replaced(case.message(), roots=(envelope,)), "root keys that it takes")
    assert case.trust.root.version == 1


@tuf
def test_root_needs_the_threshold_of_the_one_before(tmp_path: Path) -> None:
    case = Case.__new__(Case)
    case.folder, case.signers = tmp_path, Signers(root=[ANN, BOB, EVE], thresholds={"root": 2})
    case.file = write_root_file(tmp_path / "root.json", case.signers.root_envelope())
    case.trust = case.restarted()
    new, _ = case.rotated(root=[EVE], thresholds={})
    too_few, enough = (enveloped(new.root_document(), *keys) for keys in ([EVE], [ANN, EVE]))
    with pytest.raises(UntrustedError, match="1 of the 2 root keys"):
        case.trust.check(new.message(new.manifest(1), roots=[too_few]))
    assert case.trust.check(new.message(new.manifest(1), roots=[enough])).model is not None


@tuf
def test_root_with_a_gap_before_it_is_refused(case: Case) -> None:
    _, envelope = case.rotated(version=3)
    refused(case, replaced(case.message(), roots=(envelope,)), "one between them is missing")


@tuf
def test_device_that_was_away_follows_one_root_after_the_other(case: Case) -> None:
    roots = []
    for key in (EVE, ANN, BOB):
        case.signers, envelope = case.rotated(root=[key], thresholds={"release": 2})
        roots.append(envelope)
    assert case.run(case.signers.message(case.signers.manifest(4), roots=roots)).model is not None
    assert case.restarted().root.version == 4


@tuf
def test_root_that_is_known_or_older_changes_nothing(case: Case) -> None:
    new, envelope = case.rotated(root=[EVE])
    first = case.signers.root_envelope()
    for _ in range(2):
        assert case.run(new.message(new.manifest(4), roots=[first, envelope])).model is not None
    assert case.trust.root.version == 2


@tuf
def test_owner_s_root_file_is_taken_anew_only_where_it_is_another(case: Case) -> None:
    new, envelope = case.rotated(release=[EVE], thresholds={})
    case.run(new.message(new.manifest(4), roots=[envelope]))
    assert case.restarted().root.version == 2, "the file has the first root still"
    other = Signers()
    write_root_file(case.file, other.root_envelope())
    trust = case.restarted()
    assert trust.newest(TASK) == 0
    assert trust.check(other.message(other.manifest(1))).model is not None


# -- files


@pytest.mark.parametrize("content", [b"", b"{}", b"ab" * 32, b"\xff" * 9])
def test_file_that_holds_no_root_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "root.json").write_bytes(content)
    with pytest.raises(ConfigurationError, match="holds no root of trust"):
        Trust(tmp_path / "trust", tmp_path / "root.json", fleet=FLEET, device=DEVICE)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        Trust(tmp_path / "trust", tmp_path / "none.json", fleet=FLEET, device=DEVICE)


def test_damaged_memory_is_said_and_never_taken_for_none(case: Case) -> None:
    path = case.folder / "trust"
    data = path.read_bytes()
    for position in range(0, len(data), 7):
        path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        with pytest.raises(StorageError, match="is damaged"):
            case.restarted()


def test_refusal_says_which_assignment_it_answers(case: Case) -> None:
    with pytest.raises(ReleaseRefusedError) as caught:
        case.trust.check(case.message(2, number=7))
    assert (caught.value.task, caught.value.release, caught.value.assignment) == (TASK, 2, 7)


# -- flipped bits


def test_no_flipped_bit_passes(memory_path: Path, proof: Proof) -> None:
    """Anywhere in a root, a manifest or an assignment; whatever order the signatures are in."""
    case = Case(memory_path)
    new, envelope = case.rotated(root=[EVE])
    message = new.message(new.manifest(4), roots=[envelope])
    parts = (message.roots[0], message.manifest, message.envelope)
    drawn, accepted, count = random.Random(proof.seed), 0, proof.count(short=300, full=10_000)
    for _ in range(count):
        which = drawn.randrange(3)
        flipped = bytearray(parts[which])
        flipped[drawn.randrange(len(flipped))] ^= 1 << drawn.randrange(8)
        changed = [bytes(flipped) if number == which else part for number, part in enumerate(parts)]
        fresh = Trust(case.folder / "fresh", case.file, fleet=FLEET, device=DEVICE)
        (case.folder / "fresh").unlink()
        try:
            fresh.check(Release(roots=(changed[0],), manifest=changed[1], envelope=changed[2]))
            accepted += 1
        except UntrustedError:
            pass
        (case.folder / "fresh").unlink(missing_ok=True)
    assert Trust(case.folder / "fresh", case.file, fleet=FLEET, device=DEVICE).check(message).model is not None
    proof.show("S3", f"releases accepted of {count} with a flipped bit", accepted, at_most=0)


def test_signature_that_is_not_checked_lets_flipped_bits_pass(
    memory_path: Path, proof: Proof, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control."""
    monkeypatch.setattr(
        "edge_sdk.protocol.signing.signers_of", lambda _, __, signatures: {each.key for each in signatures}
    )
    with pytest.raises(AssertionError, match="flipped bit"):
        test_no_flipped_bit_passes(memory_path, proof.aside)


def test_payload_is_what_was_signed(case: Case) -> None:
    manifest = case.signers.manifest(4)
    assert payload_of(case.signers.message(manifest).manifest) == encoded(manifest)
