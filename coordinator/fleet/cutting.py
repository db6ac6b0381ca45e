"""The broker's side of a revocation: makes it refuse the device, and checks that it does.

Neither a new list nor SIGHUP ends a session of mosquitto's that is open. So two stand-ins of the device, which live for
minutes, call on the broker: the first has a certificate that is on the new list, and calls until it is refused; then
the second, whose certificate is not, takes the place of the device's session, which ends it for good.

In an open fleet SIGHUP does end sessions whose password no longer holds. That the broker has read the new passwords is
seen by a stand-in, a user that is in no other list, who calls until it is let in.
"""

from __future__ import annotations

import logging
import os
import secrets
import shlex
import signal
import subprocess
import time
from contextlib import closing, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from coordinator.fleet.authority import Signed
from coordinator.fleet.folder import Fleet
from coordinator.fleet.mosquitto import PID_FILE
from coordinator.fleet.passwords import PASSWORD_FILE, list_passwords
from coordinator.fleet.revocation import LIST_FILE, list_revoked
from coordinator.fleet.secret import new_secret
from coordinator.store.database import Store
from edge_sdk.disk import disk_errors, write_durably
from edge_sdk.errors import BrokerUnreachableError, StorageError
from edge_sdk.transport.address import BrokerAddress, Credentials, tls_context, why_refused
from edge_sdk.transport.mqtt import MqttTransport

_log = logging.getLogger(__name__)
_PATIENCE_S = 5.0
_TRY_AGAIN_S = 0.1


def cut_off(store: Store, fleet: Fleet, device: str) -> float:
    """Have the broker refuse a revoked device and end its session; the seconds until that was seen to be so.

    Raises ``BrokerUnreachableError``, which says what is left to do, if the broker still lets it in or does not answer.
    """
    try:
        return _shut_out(store, fleet, device) if fleet.settings.is_open else _refused(store, fleet, device)
    except StorageError as error:
        raise BrokerUnreachableError(
            f"{device} is revoked, but the broker could not be told: {error}; run `coordinator device revoke` "
            "again as a user who may write there"
        ) from error


def _refused(store: Store, fleet: Fleet, device: str) -> float:
    """As :func:`cut_off`, where devices have certificates."""
    began_s = time.monotonic()
    listed, other = (fleet.authority.stand_in(device, time.time()) for _ in range(2))
    list_revoked(store, fleet, [listed.certificate])
    with disk_errors(fleet.state_dir), TemporaryDirectory(dir=fleet.authority_file.parent) as folder:
        refused, taking = (_written(Path(folder) / name, it) for name, it in (("listed", listed), ("other", other)))
        _reload(fleet)
        _wait_until_refused(fleet, refused, device)
        _take_place(fleet, taking, device)
    return time.monotonic() - began_s


def tell_broker(store: Store, fleet: Fleet) -> None:
    """Write the lists of who is let in and who is not, and have the broker read them if possible, without waiting.

    Raises ``StorageError`` if an open fleet's passwords cannot be written.
    """
    if fleet.settings.is_open:
        list_passwords(store, fleet)
    try:
        list_revoked(store, fleet)
        _reload(fleet)
    except (BrokerUnreachableError, StorageError) as error:
        _log.warning("%s", error)


def _shut_out(store: Store, fleet: Fleet, device: str) -> float:
    """As :func:`cut_off`, for an open fleet, in which the device's password has just been withdrawn."""
    began_s = time.monotonic()
    user, secret = f"stand-in-{secrets.token_hex(8)}", new_secret("")
    list_passwords(store, fleet, {user: secret})
    try:
        _reload(fleet)
        _wait_until_let_in(fleet, Credentials(user, secret), device)
    finally:
        tell_broker(store, fleet)
    return time.monotonic() - began_s


def _wait_until_let_in(fleet: Fleet, credentials: Credentials, device: str) -> None:
    settings = fleet.settings
    give_up_s = time.monotonic() + _PATIENCE_S
    while True:
        link = MqttTransport(
            settings.address,
            credentials.user,
            (),
            credentials=credentials,
            ca_file=fleet.authority_file,
            allow_plaintext=settings.allow_plaintext,
        )
        with closing(link), suppress(BrokerUnreachableError):
            link.connect()
            return
        if time.monotonic() > give_up_s:
            raise BrokerUnreachableError(
                f"{device} is revoked, but the broker at {settings.broker} was not seen to know: have it read "
                f"{fleet.broker_dir / PASSWORD_FILE} again, as by `systemctl reload mosquitto`, and say `coordinator "
                "device revoke` again"
            )
        time.sleep(_TRY_AGAIN_S)


def _written(path: Path, signed: Signed) -> Path:
    write_durably(path, signed.key_pem + signed.certificate_pem, secret=True)
    return path


def _reload(fleet: Fleet) -> None:
    """Have the broker read the list again, by the fleet's ``reload`` command or by SIGHUP to the PID in its file."""
    if fleet.settings.reload is not None:
        _run(fleet.settings.reload)
        return
    pid_file = fleet.broker_dir / PID_FILE
    if not pid_file.exists():
        return
    try:
        process = psutil.Process(int(pid_file.read_text()))
        if process.name().startswith("mosquitto"):  # a PID that outlived its process may be anybody's
            os.kill(process.pid, signal.SIGHUP)
    except (ValueError, psutil.NoSuchProcess, ProcessLookupError):
        return
    except (psutil.AccessDenied, PermissionError) as error:
        raise BrokerUnreachableError(f"{_left_to_do(fleet)}: its process may not be told ({error})") from error


def _run(command: str) -> None:
    try:
        done = subprocess.run(shlex.split(command), capture_output=True, text=True, timeout=_PATIENCE_S, check=False)
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise BrokerUnreachableError(f"the broker's reload command {command!r} failed: {error}") from error
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
        raise BrokerUnreachableError(f"the broker's reload command {command!r} failed: {said}")


def _wait_until_refused(fleet: Fleet, certificate: Path, device: str) -> None:
    address = BrokerAddress.parse(fleet.settings.broker)
    give_up_s = time.monotonic() + _PATIENCE_S
    while True:
        try:
            words = why_refused(address, tls_context(fleet.authority_file, certificate))
        except OSError as error:
            raise BrokerUnreachableError(
                f"{device} is revoked, but nobody answers at {address} ({error}): a broker that starts reads the list, "
                f"one that runs elsewhere needs {fleet.broker_dir / LIST_FILE}"
            ) from error
        if "revoked" in words:
            return
        if time.monotonic() > give_up_s:
            raise BrokerUnreachableError(f"{device} is revoked, but {_left_to_do(fleet)}")
        time.sleep(_TRY_AGAIN_S)


def _take_place(fleet: Fleet, certificate: Path, device: str) -> None:
    address = BrokerAddress.parse(fleet.settings.broker)
    link = MqttTransport(address, device, (), ca_file=fleet.authority_file, certificate_file=certificate)
    with closing(link):
        link.connect()


def _left_to_do(fleet: Fleet) -> str:
    return (
        f"the broker at {fleet.settings.broker} still lets it in: have it read {fleet.broker_dir / LIST_FILE} again, "
        "as by `systemctl reload mosquitto`, and run `coordinator device revoke` again"
    )
