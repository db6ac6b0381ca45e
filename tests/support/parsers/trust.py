"""What is signed, by whomever: envelopes, what is in them, and the files that a device and an operator keep of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.delivery.approving import SignedManifest, parse_signed
from coordinator.delivery.keys import new_key, read_key, read_public
from edge_sdk.errors import ConfigurationError, ProtocolError, StorageError, UntrustedError
from edge_sdk.protocol.messages import Release, decode_from_coordinator, encode
from edge_sdk.protocol.releases import Assignment, ReleaseManifest, Root, encoded, role_of, verified
from edge_sdk.protocol.signing import opened, seal, sign
from edge_sdk.security.trust import Trust, load_root
from tests.security import attacks
from tests.support import mutation
from tests.support.parsers.parser import Parser, of_file
from tests.support.signed import DEVICE, FLEET, Signers, enveloped, keys_of, write_root_file

_Document = TypeVar("_Document", Root, ReleaseManifest, Assignment)
_MADE_S = 1.7e9


def parsers(folder: Path) -> list[Parser]:
    """All of this room; files lie in ``folder``. The keys are always the same."""
    root, release, online = (Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in range(3))
    signers = Signers(root=[root], release=[release], round=[online], made_s=_MADE_S)
    manifest, document = signers.manifest(3), signers.root_document()
    return [
        Parser(
            "envelope",
            opened,
            (enveloped(manifest, release),),
            UntrustedError,
            mutation.msgpack_or_torn,
            50,
            (*attacks.MSGPACK_BOMBS, attacks.with_deep_field(enveloped(manifest, release))),
        ),
        _signed("root", Root, document, root),
        _signed("manifest", ReleaseManifest, manifest, release),
        _signed("assignment", Assignment, signers.assignment(manifest), online),
        *_file_parsers(folder, signers, manifest),
    ]


def _signed(name: str, kind: type[_Document], document: _Document, key: Ed25519PrivateKey) -> Parser:
    """Of any bytes that the trusted key has signed."""
    role, trusted, seed = role_of(kind), keys_of([key]), encoded(document)

    def parse(payload: bytes) -> object:
        return verified(kind, seal(role, payload, sign(key, role, payload)), trusted)

    known = (*attacks.MSGPACK_BOMBS, attacks.with_deep_field(seed))
    return Parser(f"signed {name}", parse, (seed,), UntrustedError, mutation.msgpack_or_torn, 5, known)


def _file_parsers(folder: Path, signers: Signers, manifest: ReleaseManifest) -> list[Parser]:
    root_file = write_root_file(folder / "root.json", signers.root_envelope())
    kept = folder / "trust"
    Trust(kept, root_file, fleet=FLEET, device=DEVICE).check(signers.message(manifest))
    message = encode(signers.message(manifest, roots=(signers.root_envelope(version=2),)))
    signed = SignedManifest(3, encoded(manifest))
    new_key(folder / "a.key")

    def checked(data: bytes) -> object:
        """A whole message, to a device that has followed another."""
        said: Any = decode_from_coordinator(data)
        kept.unlink(missing_ok=True)
        trust = Trust(kept, root_file, fleet=FLEET, device=DEVICE)
        return trust.check(said) if isinstance(said, Release) else None

    def state(path: Path) -> object:
        return Trust(path, root_file, fleet=FLEET, device=DEVICE).root

    files = msgspec.json.encode(signed)
    return [
        Parser("release as a device checks it", checked, (message,), ProtocolError, mutation.msgpack_or_torn, 2),
        Parser(
            "trust that a device keeps", of_file(folder / "state", state), (kept.read_bytes(),), StorageError, weight=2
        ),
        Parser(
            "root of trust",
            of_file(folder / "given.json", load_root),
            (root_file.read_bytes(),),
            ConfigurationError,
            mutation.json_or_torn,
            2,
            attacks.JSON_BOMBS,
        ),
        Parser(
            "signed release", parse_signed, (files,), ConfigurationError, mutation.json_or_torn, 5, attacks.JSON_BOMBS
        ),
        Parser(
            "signing key",
            of_file(folder / "b.key", read_key),
            ((folder / "a.key").read_bytes(),),
            ConfigurationError,
            weight=2,
        ),
        Parser(
            "public key",
            of_file(folder / "b.pub", read_public),
            ((folder / "a.pub").read_bytes(),),
            ConfigurationError,
            weight=5,
        ),
    ]
