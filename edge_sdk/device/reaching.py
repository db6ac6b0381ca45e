"""The way to a broker, step by step, so that what fails has a name: address, network, TLS, MQTT."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Iterator

from edge_sdk.device.doctor import Finding, Mark, Patient
from edge_sdk.errors import BrokerUnreachableError, ConfigurationError
from edge_sdk.transport.address import BrokerAddress, tls_context
from edge_sdk.transport.mqtt import MqttTransport

_TIMEOUT_S = 5.0


def reach(patient: Patient) -> Iterator[Finding]:
    """One finding where a step fails, one where all went well. Nothing is published or subscribed to."""
    client = f"doctor-{os.getpid()}"  # a second client of the device's own name would end its agent's session
    try:
        address = BrokerAddress.parse(patient.broker or "")
        transport = MqttTransport.of(patient, client)
    except ConfigurationError as error:
        yield Finding("broker", Mark.FAILURE, str(error))
        return
    yield _network(address) or (_tls(address, patient) if address.tls else None) or _mqtt(transport, address)


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


def _tls(address: BrokerAddress, patient: Patient) -> Finding | None:
    context = tls_context(patient.ca_file)
    try:
        with (
            socket.create_connection((address.host, address.port), _TIMEOUT_S) as plain,
            context.wrap_socket(plain, server_hostname=address.host),
        ):
            return None
    except ssl.SSLCertVerificationError as error:
        advice = "give its authority with --ca-file, or use the name in the certificate; the clock matters too"
        return _failed(f"the certificate is not trusted: {error.verify_message}", advice)
    except OSError as error:  # ssl's other errors too
        advice = f"check that port {address.port} is the one for TLS"
        return _failed(f"no TLS at {address.host}:{address.port}: {error.strerror or error}", advice)


def _mqtt(transport: MqttTransport, address: BrokerAddress) -> Finding:
    try:
        transport.connect()
    except BrokerUnreachableError as error:
        return _failed(str(error), "check --user and --password-file, and that it is an MQTT broker")
    finally:
        transport.close()
    return Finding("broker", Mark.OK, f"{address} answers")


def _failed(found: str, advice: str) -> Finding:
    return Finding("broker", Mark.FAILURE, found, advice)
