"""The state folder: who may read and write it, its keys, and whether a coordinator is running in it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from coordinator.delivery.keys import key_file, public_half, read_key
from coordinator.doctor.patient import Patient
from coordinator.store.opening import ADDRESS_FILE, is_served
from edge_sdk.diagnosis.findings import Finding, Mark
from edge_sdk.errors import ConfigurationError
from edge_sdk.protocol.signing import Role

_OTHERS, _OTHERS_WRITE = 0o077, 0o022


def state_folder(patient: Patient) -> Iterator[Finding]:
    """Whether only its owner can write to it: anybody else who can could replace the fleet's keys."""
    folder = patient.state_dir
    if not folder.is_dir():
        yield Finding(
            "state folder", Mark.FAILURE, f"there is no folder {folder}", "give the state folder of `coordinator serve`"
        )
    elif _mode(folder) & _OTHERS_WRITE:
        yield Finding("state folder", Mark.FAILURE, f"others may write to {folder}", f"chmod go-w {folder}")
    elif not os.access(folder, os.W_OK | os.X_OK):
        advice = "run the doctor, and the coordinator, as the folder's owner"
        yield Finding("state folder", Mark.FAILURE, f"{folder} cannot be written by this user", advice)
    else:
        yield Finding("state folder", Mark.OK, f"{folder} can be written by its owner only")


def secrets(patient: Patient) -> Iterator[Finding]:
    """Whether only their owner can read the keys, and the address of a database, which may contain a password."""
    known = sorted(_secrets(patient.state_dir))
    for path in known:
        if _mode(path) & _OTHERS:
            advice = f"chmod 600 {path}; whoever has read it can use it until it is replaced"
            yield Finding("secrets", Mark.FAILURE, f"others may read {path.name} (mode {_mode(path):o})", advice)
    if not any(_mode(path) & _OTHERS for path in known):
        names = ", ".join(path.name for path in known)
        yield Finding("secrets", Mark.OK, f"only their owner can read {names}" if names else "none yet")


def keys(patient: Patient) -> Iterator[Finding]:
    """Whether the signing keys that the coordinator holds can be read and match their public halves."""
    held = [path for role in Role if (path := key_file(patient.state_dir, role)).exists()]
    broken = False
    for path in held:
        try:
            half = public_half(read_key(path))
        except ConfigurationError as error:
            broken = True
            yield Finding("keys", Mark.FAILURE, str(error), "restore it from a backup: devices trust no other")
            continue
        public = path.with_suffix(".pub")
        if not public.exists() or public.read_text(encoding="ascii", errors="replace").strip() != half:
            broken = True
            advice = "start the coordinator, which writes it"
            yield Finding("keys", Mark.WARNING, f"{public.name} is not the public key of {path.name}", advice)
    if not broken:
        names = ", ".join(path.name for path in held)
        yield Finding("keys", Mark.OK, f"{names} are intact" if names else "none yet: the first task creates them")


def serving(patient: Patient) -> Iterator[Finding]:
    """Whether a coordinator holds the folder's lock."""
    words = "a coordinator serves the folder" if is_served(patient.state_dir) else "no coordinator serves the folder"
    yield Finding("coordinator", Mark.OK, words)


def _secrets(folder: Path) -> Iterator[Path]:
    for depth in ("", "*/"):
        yield from folder.glob(f"{depth}*.key")
        yield from folder.glob(f"{depth}*.password")
        yield from (path for path in folder.glob(f"{depth}*.pem") if b"PRIVATE KEY" in path.read_bytes())
    if (folder / ADDRESS_FILE).exists():
        yield folder / ADDRESS_FILE


def _mode(path: Path) -> int:
    return path.stat().st_mode & 0o777
