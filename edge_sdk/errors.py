"""Every error that this project raises on purpose, in one tree.

    RaffmError                        exit code
    ├── ConfigurationError                2   an option, a file or a profile is wrong
    │   ├── SettingError                  2   a setting that cannot have its value
    │   ├── UnknownProfileError           2   no such device profile
    │   └── UnsupportedArchitectureError  2   a model family that the families table lacks
    ├── DataFormatError                   3   a data file that cannot be read as asked
    │   └── NothingToLearnError           3   examples of which none has a target
    ├── ModelFormatError                  3   a model folder that cannot be read as asked
    ├── BrokerUnreachableError            4   no broker answers at the address
    ├── BlobUnreachableError              4   a web address gives no blob
    ├── CoordinatorUnreachableError       4   no coordinator answers at the address
    ├── PortInUseError                    4   the port to listen on is taken
    ├── StateInUseError                   4   another process works in the state folder
    ├── ProtocolError                     5   bytes from the other side that break the contract
    │   ├── MalformedMessageError         5
    │   ├── UnsupportedVersionError       5
    │   ├── BlobCorruptError              5
    │   ├── TensorTableError              5
    │   └── UntrustedError                5   a signature, role or freshness that does not hold
    │       └── ReleaseRefusedError       5   a release that is not what an assignment that holds says
    ├── StorageError                      6   the disk refuses
    │   ├── CacheFullError                6
    │   ├── DiskFullError                 6
    │   └── StoreAwayError                6   the database's server does not answer
    ├── TrainingMemoryError               7   training needed more memory than its limit
    ├── TrainingError                     7   training failed for another reason
    ├── DeadlineError                     8   what was waited for did not come in time
    ├── UnfitDeviceError                  9   an agent cannot run here
    ├── UnfitCoordinatorError             9   a coordinator cannot do its work here
    └── ServiceManagerError              10   no systemd runs here, or it refuses

Each message is one line, whatever it quotes: what is wrong, the value, what to do. A command ends with the class's
``exit_code``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar

_CONTROLS = (*range(0x20), *range(0x7F, 0xA0), *range(0x2028, 0x202F), *range(0x2066, 0x206A))
VISIBLE = {code: repr(chr(code))[1:-1] for code in _CONTROLS}
"""For :meth:`str.translate`: escapes line breaks and terminal control characters, as ``repr`` writes them."""


class RaffmError(Exception):
    """Base of the tree; catch this to catch everything that the project raises on purpose."""

    exit_code: ClassVar[int] = 1

    def __str__(self) -> str:
        return super().__str__().translate(VISIBLE)


# -- what the user gave


class ConfigurationError(RaffmError):
    """An option, a configuration file or a value in it is wrong."""

    exit_code = 2


class SettingError(ConfigurationError):
    """The setting ``name`` cannot have ``value``; ``why`` is the rest of the sentence."""

    def __init__(self, name: str, value: object, why: str) -> None:
        super().__init__(f"{name} {value!r} {why}")
        self.name, self.value, self.why = name, value, why


class UnknownProfileError(ConfigurationError):
    """No device profile has this name."""


class UnsupportedArchitectureError(ConfigurationError):
    """The families table has no row for this architecture."""


class DataFormatError(RaffmError):
    """A data file is missing, unreadable or lacks a column."""

    exit_code = 3


class NothingToLearnError(DataFormatError):
    """None of the examples has a target for the model: its tokenizer finds no token, or no second one, in any."""


class ModelFormatError(RaffmError):
    """A model folder is missing, incomplete or inconsistent."""

    exit_code = 3


# -- the wire


class BrokerUnreachableError(RaffmError):
    """No MQTT broker answers at the address."""

    exit_code = 4


class BlobUnreachableError(RaffmError):
    """A blob cannot be fetched from its web address, or other bytes lie there."""

    exit_code = 4


class CoordinatorUnreachableError(RaffmError):
    """No coordinator answers at the web address, or it cannot answer now."""

    exit_code = 4


class PortInUseError(RaffmError):
    """Another process listens on the port already."""

    exit_code = 4


class StateInUseError(RaffmError):
    """Another process works in the state folder."""

    exit_code = 4


class ProtocolError(RaffmError):
    """The other side broke the contract of :mod:`edge_sdk.protocol`."""

    exit_code = 5


class MalformedMessageError(ProtocolError):
    """Bytes that are not a message of the closed set, or that exceed its limits."""


class UnsupportedVersionError(ProtocolError):
    """The other side speaks no protocol version that this side speaks."""


class BlobCorruptError(ProtocolError):
    """A blob's or chunk's bytes do not match its digest."""


class TensorTableError(ProtocolError):
    """A tensor file whose names, shapes or types differ from what was agreed."""


class UntrustedError(ProtocolError):
    """A signed document whose signature is invalid, whose role is wrong, or which has expired or been superseded."""


class ReleaseRefusedError(UntrustedError):
    """``release`` of ``task`` cannot be trusted, although the assignment of it, by its number, can."""

    def __init__(self, task: str, release: int, assignment: int, why: str) -> None:
        super().__init__(f"release {release} of {task} is refused: {why}")
        self.task, self.release, self.assignment = task, release, assignment


# -- this machine


class UnfitDeviceError(RaffmError):
    """Something that an agent needs is missing on this machine; ``edge-agent doctor`` says what."""

    exit_code = 9


class UnfitCoordinatorError(RaffmError):
    """Something that a coordinator needs is missing or damaged; ``coordinator doctor`` says what."""

    exit_code = 9


class StorageError(RaffmError):
    """The disk refuses to read or write."""

    exit_code = 6


class CacheFullError(StorageError):
    """The cache's limit leaves no room for what is wanted beside the blobs that are in use."""


class DiskFullError(StorageError):
    """No space is left where state or blobs are kept."""


class StoreAwayError(StorageError):
    """The server of the database does not answer now."""


class TrainingError(RaffmError):
    """A training process ended without a result."""

    exit_code = 7


class TrainingMemoryError(TrainingError):
    """A training process needed more memory than its limit allows."""


class DeadlineError(RaffmError):
    """What was waited for did not happen in time."""

    exit_code = 8


class ServiceManagerError(RaffmError):
    """There is no systemd to run a service, or it refuses."""

    exit_code = 10


def did_you_mean(word: str, known: Iterable[str], otherwise: str = "") -> str:
    """How a message about the unknown ``word`` ends: with the nearest ``known`` one, else ``otherwise``, else all."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1)
    return f"did you mean {close[0]}?" if close else otherwise or f"known are {', '.join(names)}"
