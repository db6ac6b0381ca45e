"""Connects to a broker step by step (address, network, TLS, MQTT), to name the step that fails."""

from __future__ import annotations

import os
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import closing

from edge_sdk.diagnosis.findings import Finding, Mark
from edge_sdk.errors import BrokerUnreachableError, ConfigurationError
from edge_sdk.protocol.messages import MAX_PAYLOAD_BYTES
from edge_sdk.transport.address import BrokerAddress, BrokerSettings, tls_context, trust_advice, why_refused
from edge_sdk.transport.mqtt import MqttTransport

_TIMEOUT_S = 5.0
_DAY_S = 86400.0
_RENEW_DAYS = 14


def reach(settings: BrokerSettings, *, may_log_in: bool = True) -> Iterator[Finding]:
    """The findings up to the first step that fails. Nothing is published, and no topic subscribed to.

    Without ``may_log_in``, TLS is the last step.
    """
    client = f"doctor-{os.getpid()}"  # a second client of the agent's or coordinator's own name would end its session
    try:
        address = BrokerAddress.parse(settings.broker or "")
        transport = MqttTransport.of(settings, client)
    except ConfigurationError as error:
        yield Finding("broker", Mark.FAILURE, str(error))
        return
    found = _network(address) or (_tls(address, settings) if address.tls else None)
    if found is not None:
        yield found
    if found is not None and found.mark is Mark.FAILURE:
        return
    if may_log_in or settings.certificate_file is not None:
        yield _mqtt(transport, address, settings)
    else:
        yield Finding("broker", Mark.OK, f"{address} answers; no login was tried")


def _network(address: BrokerAddress) -> Finding | None:
    where = f"{address.host}:{address.port}"
    try:
        socket.create_connection((address.host, address.port), _TIMEOUT_S).close()
    except socket.gaierror as error:
        return _failed(f"the name {address.host} is not known ({error.strerror})", "check the name, and DNS")
    except TimeoutError:
        advice = "check the address; a firewall may drop the connection"
        return _failed(f"{where} does not answer within {_TIMEOUT_S:.0f} s", advice)
    except ConnectionRefusedError:
        return _failed(f"nothing listens at {where}", "start the broker, or check the port")
    except OSError as error:
        return _failed(f"{where} cannot be reached: {error.strerror or error}", "check the network")
    return None


def _tls(address: BrokerAddress, settings: BrokerSettings) -> Finding:
    context = tls_context(settings.ca_file, settings.certificate_file, settings.key_file)
    try:
        refused = why_refused(address, context)
        with (
            socket.create_connection((address.host, address.port), _TIMEOUT_S) as plain,
            context.wrap_socket(plain, server_hostname=address.host) as connection,
        ):
            shown = _certificate(connection)
    except ssl.SSLCertVerificationError as error:
        found = f"the broker's certificate is not trusted: {error.verify_message}"
        return Finding("certificate", Mark.FAILURE, found, trust_advice(error))
    except OSError as error:  # ssl's other errors too
        advice = f"check that port {address.port} is the one for TLS"
        return _failed(f"no TLS at {address.host}:{address.port}: {error.strerror or error}", advice)
    found, _, advice = refused.partition(": ")
    return _failed(f"{address} refuses this client: {found}", advice) if refused else shown


def _certificate(connection: ssl.SSLSocket) -> Finding:
    until_s = ssl.cert_time_to_seconds(str((connection.getpeercert() or {})["notAfter"]))
    days = (until_s - time.time()) / _DAY_S
    found = (
        f"the broker's certificate is valid until {time.strftime('%Y-%m-%d', time.gmtime(until_s))}, {days:.0f} days"
    )
    if days >= _RENEW_DAYS:
        return Finding("certificate", Mark.OK, found)
    return Finding("certificate", Mark.WARNING, found, "renew it before then: afterwards nothing can connect")


def _mqtt(transport: MqttTransport, address: BrokerAddress, settings: BrokerSettings) -> Finding:
    if settings.certificate_file is not None and address.tls:
        # its name may be the client's, and a session would end that of the agent
        return Finding("broker", Mark.OK, f"{address} answers, and accepts the certificate")
    with closing(transport):
        try:
            transport.connect()
        except BrokerUnreachableError as error:
            return _failed(str(error), "check --user and --password-file, and that it is an MQTT broker")
        max_bytes = transport.bulk_room()
        found = f"{address} answers: MQTT {transport.spoken.value}, messages of up to {max_bytes} bytes"
    if max_bytes >= MAX_PAYLOAD_BYTES:
        return Finding("broker", Mark.OK, found)
    advice = f"transfers are faster if it accepts {MAX_PAYLOAD_BYTES}: raise its limit (mosquitto: max_packet_size)"
    return Finding("broker", Mark.WARNING, found, advice)


def _failed(found: str, advice: str) -> Finding:
    return Finding("broker", Mark.FAILURE, found, advice)
