"""Configures mosquitto to admit only the fleet's devices, each only to the topics with its own name.

    mosquitto.conf    one listener, TLS alone; the user name and the client id are the certificate's common name
    acl               who may publish and subscribe where
    authority.pem     whom it trusts
    revoked.pem       the list of revoked certificates, which it reads again on SIGHUP
    server.pem, .key  what it shows; the key is for the user that it runs as
    passwords         of an open fleet, in the place of certificates: who is let in, which it reads again on SIGHUP
    mosquitto.pid     which process it is; it writes that as the user that it runs as

One name so is one client id: a second connection with the same name ends the first, and nobody else's. Without TLS,
which an open fleet may be, it listens on this machine alone, unless plaintext is allowed.
Nothing is kept on disk. Tried with 2.0.11.
"""

from __future__ import annotations

import os
import pwd
import shutil
import time
from pathlib import Path

from coordinator.fleet.folder import Fleet, FleetSettings
from coordinator.fleet.passwords import PASSWORD_FILE, list_passwords
from coordinator.fleet.revocation import list_revoked
from coordinator.store.database import Store
from edge_sdk.disk import disk_errors, write_durably
from edge_sdk.errors import ConfigurationError
from edge_sdk.protocol.messages import MAX_PAYLOAD_BYTES
from edge_sdk.protocol.topics import FROM_DEVICE, TO_DEVICE, Topic, coordinator_filters, coordinator_name
from edge_sdk.transport.address import is_loopback

CONFIGURATION_FILE = "mosquitto.conf"
PID_FILE = "mosquitto.pid"
_ANYBODY = "%u"  # mosquitto puts the user name in its place
_CONFIGURATION = """\
# Written by `coordinator broker config mosquitto`, and overwritten by it.
user {user}
pid_file {folder}/{pid_file}
persistence false
log_dest stderr

listener {port}{bind}
{admission}use_username_as_clientid true
allow_anonymous false
acl_file {folder}/acl

max_packet_size {packet_bytes}
max_inflight_messages 20
max_queued_messages 1000
max_queued_bytes {queued_bytes}
set_tcp_nodelay true
"""
_TLS = """\
certfile {folder}/server.pem
keyfile {folder}/server.key
tls_version tlsv1.2
"""
_CERTIFICATES = """\
cafile {folder}/authority.pem
crlfile {folder}/revoked.pem
require_certificate true
use_identity_as_username true
"""
_PASSWORDS = f"password_file {{folder}}/{PASSWORD_FILE}\n"
_PACKET_BYTES = MAX_PAYLOAD_BYTES + 1024
_QUEUED_BYTES = 64 << 20


def configuration(settings: FleetSettings, folder: Path, user: str, bind: str | None = None) -> str:
    """The text of ``mosquitto.conf``, for the files in ``folder``; ``bind`` is the only address to listen on.

    Raises ``ConfigurationError`` if other machines could read plaintext, and the settings do not allow that.
    """
    address = settings.address
    if not address.tls and not settings.allow_plaintext:
        bind = bind or address.host
        if not is_loopback(bind):
            raise ConfigurationError(
                f"a listener without TLS on {bind} would let the network read tokens: `coordinator fleet init` with "
                "mqtts://, or with --allow-plaintext"
            )
    admission = (_TLS if address.tls else "") + (_PASSWORDS if settings.is_open else _CERTIFICATES)
    return _CONFIGURATION.format(
        admission=admission.format(folder=folder),
        user=user,
        folder=folder,
        pid_file=PID_FILE,
        port=address.port,
        bind=f" {bind}" if bind else "",
        packet_bytes=_PACKET_BYTES,
        queued_bytes=_QUEUED_BYTES,
    )


def access_rules(fleet: str) -> str:
    """The text of ``acl``: the coordinator reads from and writes to every device, a device only in its own branch.

    mosquitto warns that the last line names no user. That is intended: every device may read the announcement.
    """
    own = [f"topic read {topic}" for topic in coordinator_filters(fleet)]
    own += [f"topic write {topic}" for topic in (Topic(fleet), *(Topic(fleet, "+", each) for each in TO_DEVICE))]
    anybody = [f"pattern write {Topic(fleet, _ANYBODY, channel)}" for channel in FROM_DEVICE]
    anybody += [f"pattern read {Topic(fleet, _ANYBODY, channel)}" for channel in TO_DEVICE]
    lines = [f"user {coordinator_name(fleet)}", *own, "", *anybody, f"pattern read {Topic(fleet)}"]
    return "\n".join(lines) + "\n"


def write_configuration(store: Store, fleet: Fleet, user: str | None = None, bind: str | None = None) -> Path:
    """Write all files anew into the fleet's ``broker_dir``, with a new certificate; the path of ``mosquitto.conf``.

    ``user`` is the account that mosquitto switches to if root starts it; the default is the caller, or ``mosquitto`` if
    that is root. Raises ``ConfigurationError`` if there is no such user or it cannot enter the folder, and
    ``StorageError``.
    """
    folder = fleet.broker_dir.absolute()
    account = _account(user)
    text = configuration(fleet.settings, folder, account.pw_name, bind)
    signed = fleet.authority.server(fleet.settings.served_hosts, time.time())
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _require_entry(folder, account)
        write_durably(folder / "authority.pem", fleet.authority.certificate_pem)
        write_durably(folder / "server.pem", signed.certificate_pem)
        write_durably(folder / "server.key", signed.key_pem, secret=True)
        (folder / PID_FILE).touch()
        for owned in ("server.key", PID_FILE):
            _give(folder / owned, account)
        write_durably(folder / "acl", access_rules(fleet.settings.name).encode())
        write_durably(folder / CONFIGURATION_FILE, text.encode())
    list_revoked(store, fleet)
    if fleet.settings.is_open:
        _give(list_passwords(store, fleet), account)
    return folder / CONFIGURATION_FILE


def _give(file: Path, account: pwd.struct_passwd) -> None:
    """If root writes the files, give them to the account that mosquitto runs as."""
    if os.geteuid() == 0:
        shutil.chown(file, account.pw_uid, account.pw_gid)


def _require_entry(folder: Path, account: pwd.struct_passwd) -> None:
    """Raise ``ConfigurationError`` if ``account`` may not enter this folder or one above it."""
    if account.pw_uid in {0, os.geteuid()}:
        return
    groups = os.getgrouplist(account.pw_name, account.pw_gid)
    for closed in (*reversed(folder.parents), folder):
        about = closed.stat()
        kind = 0o100 if about.st_uid == account.pw_uid else 0o010 if about.st_gid in groups else 0o001
        if not about.st_mode & kind:
            raise ConfigurationError(
                f"mosquitto would run as {account.pw_name}, who cannot enter {closed}: use another folder (--dir), "
                "or another user (--user)"
            )


def _account(user: str | None) -> pwd.struct_passwd:
    if user is None:
        user = "mosquitto" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    try:
        return pwd.getpwnam(user)
    except KeyError as error:
        raise ConfigurationError(f"there is no user {user!r} for mosquitto to run as: give another --user") from error
