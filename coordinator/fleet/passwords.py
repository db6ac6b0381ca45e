"""An open fleet, for a first try: a device has nothing but a token, which is its password at the broker.

mosquitto reads the passwords' hashes from a file that is derived from the store. On SIGHUP it reads them again, and
ends the sessions of those whose password is no longer valid. Tokens have 256 random bits, so no hash reveals one.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path

from coordinator.fleet.folder import Fleet
from coordinator.fleet.secret import new_secret
from coordinator.store.database import Store
from coordinator.store.records import PasswordRecord
from edge_sdk.disk import disk_errors, durable_file
from edge_sdk.protocol.topics import check_name, coordinator_name
from edge_sdk.transport.address import BrokerAddress

PASSWORD_FILE = "passwords"  # noqa: S105 - a name
_PREFIX = "raffm_device_"
_ITERATIONS, _SALT_BYTES = 101, 12  # mosquitto_passwd's own


def make_password(store: Store, device: str, group: str | None, now_s: float, who: str) -> str:
    """Make a token for ``device`` in place of any earlier one, even if it was revoked; it cannot be read again later.

    The device is put into ``group`` if one is named. Raises ``ConfigurationError`` for a malformed name.
    """
    check_name(device, "device")
    if group is not None:
        check_name(group, "group")
    secret = new_secret(_PREFIX)
    with store.transaction() as tx:
        tx.devices.enrol(device, group, now_s)
        tx.passwords.put(PasswordRecord(device, verifier_of(secret), now_s))
        tx.audit.note(now_s, who, "create device password", device)
    return secret


def password_line(fleet: Fleet, device: str) -> str:
    """The command to type on a device, in a folder with the file ``token`` and two files that are not secret."""
    settings = fleet.settings
    address = BrokerAddress.parse(settings.broker)
    words = ["edge-agent run", f"--device {device}", f"--broker {settings.broker}", f"--fleet {settings.name}"]
    words += [f"--user {device}", "--password-file token", "--root root.json", "--data FILE"]
    words += [f"--ca-file {fleet.authority_file.name}"] if address.tls else []
    words += [] if address.tls or address.is_loopback else ["--allow-plaintext"]
    return " ".join(words)


def list_passwords(store: Store, fleet: Fleet, also: Mapping[str, str] | None = None) -> Path:
    """Write whom the broker lets in: the coordinator, every device that has a token, and the users in ``also``."""
    path = fleet.broker_dir / PASSWORD_FILE
    with fleet.alone(), disk_errors(path):
        with store.reading() as tx:
            known = {it.device: it.verifier for it in tx.passwords.all()}
        own = {coordinator_name(fleet.settings.name): fleet.coordinator_password(), **(also or {})}
        known |= {user: verifier_of(secret) for user, secret in own.items()}
        owner = path.stat() if path.exists() else None
        path.parent.mkdir(parents=True, exist_ok=True)
        with durable_file(path, secret=True) as out:
            if owner is not None and os.geteuid() == 0:
                os.fchown(out.fileno(), owner.st_uid, owner.st_gid)
            out.write("".join(f"{user}:{verifier}\n" for user, verifier in sorted(known.items())).encode())
    return path


def verifier_of(secret: str) -> str:
    """The salted hash of a password as `mosquitto_passwd` writes it: PBKDF2 with SHA-512."""
    salt = secrets.token_bytes(_SALT_BYTES)
    digest = hashlib.pbkdf2_hmac("sha512", secret.encode(), salt, _ITERATIONS)
    return f"$7${_ITERATIONS}${b64encode(salt).decode()}${b64encode(digest).decode()}"
