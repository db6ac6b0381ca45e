"""All checks, in their order. Checks that need the store are left out if it cannot be read."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from coordinator.doctor import folder, records, work
from coordinator.doctor.patient import Patient
from edge_sdk.diagnosis.findings import Finding, Mark, examine, failed
from edge_sdk.diagnosis.machine import clock, python_version, version_of
from edge_sdk.errors import UnfitCoordinatorError

_PACKAGES = ("onnxruntime", "torch", "transformers", "onnx", "sqlalchemy")
_ANOTHER = "`coordinator broker config mosquitto` makes a new one; then reload the broker: `systemctl reload mosquitto`"
_Checks = Sequence[tuple[str, Callable[[Patient], Iterator[Finding]]]]


def packages(_: Patient) -> Iterator[Finding]:
    """Whether the packages that prepare, aggregate and export models are installed."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        advice = "pip install 'raffm-edge[coordinator]'"
        yield Finding("packages", Mark.FAILURE, f"not installed: {', '.join(missing)}", advice)
    else:
        yield Finding("packages", Mark.OK, ", ".join(f"{name} {version_of(name)}" for name in _PACKAGES))


def broker(patient: Patient) -> Iterator[Finding]:
    """Every step on the way to the broker, up to the first that fails."""
    linked = patient.linked()
    if linked.broker is not None:
        from edge_sdk.diagnosis.reaching import reach  # noqa: PLC0415 - paho may be what is missing

        for finding in reach(linked, may_log_in=linked.may_log_in):
            is_own = finding.check == "certificate" and finding.advice and linked is not patient
            yield replace(finding, advice=_ANOTHER) if is_own else finding


_MACHINE: _Checks = (("python", python_version), ("packages", packages), ("clock", clock), ("broker", broker))
_FOLDER: _Checks = (("state folder", folder.state_folder),)
_CONTENT: _Checks = (
    ("secrets", folder.secrets),
    ("keys", folder.keys),
    ("coordinator", folder.serving),
    ("store", records.store),
)
_RECORDED: _Checks = (
    ("disk", records.disk),
    ("blobs", records.blobs),
    ("tasks", work.tasks),
    ("devices", work.devices),
)


def examine_coordinator(patient: Patient) -> list[Finding]:
    """All findings.

    If the folder does not exist, its content is not checked; if the store cannot be read, neither are its records.
    """
    findings = examine(patient, (*_MACHINE, *_FOLDER))
    if patient.state_dir.is_dir():
        findings += examine(patient, _CONTENT)
        if findings[-1].mark is Mark.OK:
            findings += examine(patient, _RECORDED)
    return findings


def require_well(findings: Sequence[Finding]) -> None:
    """Raise ``UnfitCoordinatorError``, which names the failed checks, if there are any."""
    if names := failed(findings):
        raise UnfitCoordinatorError(f"something is wrong, see above: {', '.join(names)}")
