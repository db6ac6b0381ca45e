"""The closed set of messages, as typed structs in MessagePack.

A message is decoded into one of these types or refused; nothing on the wire names a class or carries code. Every
string, list and number has a limit, and the total size is checked before a byte is parsed. The types that a device
sends and those that a coordinator sends are two separate sets, so that neither side can impersonate the other. Unknown
fields are ignored, so that a newer peer may send more. ``README.md`` beside this file has the whole format.
"""

from __future__ import annotations

import math
from enum import Enum
from typing import Annotated, TypeVar

import msgspec

from edge_sdk.decoding import UNDECODABLE, brief
from edge_sdk.elastic.runtimes import Runtime
from edge_sdk.elastic.submodel import Architecture, ModelTask, Submodel, TrainablePart
from edge_sdk.errors import MalformedMessageError
from edge_sdk.protocol.topics import VERSION

MAX_MESSAGE_BYTES = 64 * 1024
GRAIN_BYTES = 16 * 1024
"""A blob is requested, sent and stored in whole grains; the last one may be short."""
MAX_CHUNK_BYTES = 8 * GRAIN_BYTES
CHUNK_OVERHEAD_BYTES = 1024
"""An upper bound of what a chunk takes on the wire besides its data."""
MAX_PAYLOAD_BYTES = MAX_CHUNK_BYTES + CHUNK_OVERHEAD_BYTES
MIN_PAYLOAD_BYTES = GRAIN_BYTES + CHUNK_OVERHEAD_BYTES
"""The payload that every broker has to let through."""
MAX_BLOB_BYTES = 16 * 1024**3
MAX_TASKS = 32
"""The tasks that one device may take part in."""
MAX_ROOTS = 16
"""The roots of trust that may come with a release."""

_M = TypeVar("_M")
Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9-]{1,64}$(?!\n)")]  # alone, $ lets a last line feed pass
Digest = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$(?!\n)")]
Text = Annotated[str, msgspec.Meta(max_length=500)]
Der = Annotated[bytes, msgspec.Meta(max_length=4096)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=2**53)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
_Channels = msgspec.Meta(min_length=1, max_length=16)
PixelMean = Annotated[tuple[float, ...], _Channels]
PixelStd = Annotated[tuple[Annotated[float, msgspec.Meta(gt=0)], ...], _Channels]


class Part(str, Enum):
    """What a blob of an offer, of a release or of a stored version is for."""

    WEIGHTS = "weights"
    FROZEN = "frozen"
    TRAINING_GRAPH = "training-graph"
    CONFIG = "config"
    TOKENIZER = "tokenizer"
    INFERENCE_MODEL = "inference-model"
    MOMENTS = "moments"
    ORDERING = "ordering"


class Verdict(str, Enum):
    """The coordinator's decision on an update."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    REJECTED_DUPLICATE = "rejected-duplicate"


class Refusal(str, Enum):
    """Why an update is refused: the first word of its receipt's reason."""

    TASK = "task"
    ROUND = "round"
    DUPLICATE = "duplicate"
    BASE = "base"
    IDENTITY = "identity"
    REPORT = "report"
    ENCODING = "encoding"
    SIZE = "size"
    TABLE = "table"
    SCALE = "scale"
    INDEX = "index"
    NOT_FINITE = "not-finite"
    NORM = "norm"
    REVOKED = "revoked"

    def because(self, text: str) -> str:
        """The reason of a receipt: this word, and an explanation."""
        return f"{self.value}: {text}"


class Failure(str, Enum):
    """Why a device has no update for an offer. ``EXAMPLES``: its examples do not fit the task."""

    OUT_OF_MEMORY = "out-of-memory"
    EXAMPLES = "examples"
    POLICY = "policy"
    DEADLINE = "deadline"
    TRAINING = "training"
    TRANSFER = "transfer"
    STORAGE = "storage"


class Standing(str, Enum):
    """Where a device stands with a release that it was told to run: on trial, confirmed, or back on the one before."""

    TRYING = "trying"
    HEALTHY = "healthy"
    ROLLED_BACK = "rolled-back"


class _Message(msgspec.Struct, frozen=True, tag_field="type", kw_only=True):
    """Base of all messages; ``type`` on the wire is the class name in kebab case."""


class _Value(msgspec.Struct, frozen=True, kw_only=True):
    """Base of the structs inside messages."""


# -- what messages are made of


class BlobEntry(_Value, frozen=True):
    """One blob of a manifest: what it is for, its SHA-256 and its size.

    ``address`` is a web address with the same bytes, for devices that can reach it.
    """

    part: Part
    digest: Digest
    size_bytes: Annotated[int, msgspec.Meta(ge=0, le=MAX_BLOB_BYTES)]
    address: Text | None = None


class Snapshot(_Value, frozen=True):
    """What a device can spare now. ``None`` means that a value could not be read; nothing here is a guess.

    ``training_memory_bytes`` and ``inference_memory_bytes`` are limits that the device itself enforces. ``runtime`` is
    what it wants to train on. ``providers`` are onnxruntime's execution providers, the preferred one first, if there is
    an ``accelerator``. ``gflops`` is the speed of a float32 matrix product on the processor, and ``throttled`` whether
    heat, a weak supply or a power mode slows it down. ``others_cpu_share`` is the share of all cores that other
    programs use, ``link_bytes_per_s`` the rate at which blobs have arrived.
    """

    memory_total_bytes: Count
    memory_available_bytes: Count
    training_memory_bytes: Count
    inference_memory_bytes: Count
    threads: Positive
    disk_free_bytes: Count | None = None
    battery_share: Share | None = None
    charging: bool | None = None
    temperature_c: float | None = None
    gflops: Annotated[float, msgspec.Meta(ge=0, le=1e9)] | None = None
    runtime: Runtime = Runtime.ONNX
    accelerator: Text | None = None
    providers: Annotated[tuple[Text, ...], msgspec.Meta(max_length=32)] | None = None
    throttled: bool | None = None
    others_cpu_share: Share | None = None
    metered: bool | None = None
    link_bytes_per_s: Annotated[float, msgspec.Meta(ge=0)] | None = None


class Optimizer(str, Enum):
    """What turns a device's gradients into its steps; ``MOMENTUM`` is SGD with a momentum of 0.9."""

    ADAMW = "adamw"
    SGD = "sgd"
    MOMENTUM = "momentum"

    @property
    def moments(self) -> int:
        """How many values it keeps for each weight."""
        return {Optimizer.ADAMW: 2, Optimizer.SGD: 0, Optimizer.MOMENTUM: 1}[self]


class EncodingKind(str, Enum):
    """How an update's deltas are stored, see :mod:`.encodings`."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"
    TOPK = "topk"


class Encoding(_Value, frozen=True):
    """How a device encodes an update: top-k sends a ``share`` of it; ``feedback`` adds its loss to the next update."""

    kind: EncodingKind = EncodingKind.FP32
    share: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.1
    feedback: bool = True

    @property
    def leaves_residual(self) -> bool:
        """Whether the device keeps what the encoding loses."""
        return self.feedback and self.kind is not EncodingKind.FP32


FP32 = Encoding()
"""The encoding of offers that name no other."""


class Holding(_Value, frozen=True):
    """A device's examples: what a model can learn from them, and how many it trains on. Nothing of their content."""

    suits: ModelTask
    examples: Count


class Recipe(_Value, frozen=True):
    """How to train: the same for every device of a task, except for ``micro_batch_size`` and ``max_steps``.

    A round has ``epochs`` passes over the device's examples, but at most ``max_steps`` steps. If a batch does not fit
    into memory, a step sums the gradients of parts of ``micro_batch_size`` examples. ``distillation`` is the share of
    the whole submodel's prediction, as opposed to the labels, in the targets of nested submodels. ``proximal`` is
    FedProx's mu, which pulls weights towards their first values (arXiv 1812.06127). A pixel p in 0..1 becomes
    (p - ``pixel_mean``) / ``pixel_std``, with one value for all channels or one for each.
    """

    learning_rate: Annotated[float, msgspec.Meta(gt=0, le=10)]
    batch_size: Annotated[int, msgspec.Meta(ge=1, le=4096)]
    epochs: Annotated[int, msgspec.Meta(ge=1, le=1000)]
    max_tokens: Annotated[int, msgspec.Meta(ge=3, le=8192)]
    max_steps: Annotated[int, msgspec.Meta(ge=1, le=10**9)] | None = None
    micro_batch_size: Annotated[int, msgspec.Meta(ge=1, le=4096)] | None = None
    optimizer: Optimizer = Optimizer.ADAMW
    weight_decay: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.01
    clip_norm: Annotated[float, msgspec.Meta(gt=0)] | None = None
    calibrate_logits: bool = True
    distillation: Share = 1.0
    proximal: Annotated[float, msgspec.Meta(ge=0, le=1e6)] = 0.0
    pixel_mean: PixelMean = (0.5,)
    pixel_std: PixelStd = (0.5,)

    def steps(self, examples: int) -> int:
        """The number of steps in a round, for a device with so many examples."""
        steps = self.epochs * math.ceil(examples / self.batch_size)
        return min(steps, self.max_steps or steps)


class TrainingReport(_Value, frozen=True):
    """What a device measured while it trained. ``samples``, the number of its examples, is the update's weight.

    Losses are those of the first and the last step. The update is written in ``encoding`` and takes ``uploaded_bytes``.
    """

    samples: Positive
    steps: Positive
    loss_first: float
    loss_last: float
    seconds: Seconds
    peak_memory_bytes: Count
    downloaded_bytes: Count
    uploaded_bytes: Count
    battery_share: Share | None = None
    encoding: Encoding = FP32


# -- from a device


class Hello(_Message, frozen=True, tag="hello"):
    """Birth message: who this is. Retained. ``session`` rises with every start, since a will can overtake a rebirth.

    ``snapshot`` is what the device could spare then: enough to send it a model, even if it never asks for work.
    """

    device: Name
    session: Count
    profile: Name
    agent_version: Text
    snapshot: Snapshot | None = None
    versions: Annotated[tuple[int, ...], msgspec.Meta(max_length=16)] = (VERSION,)


class Offline(_Message, frozen=True, tag="offline"):
    """Last will, or a polite goodbye. Retained. Ignored if a later session has said hello."""

    device: Name
    session: Count


class Ready(_Message, frozen=True, tag="ready"):
    """A request for a matching submodel: the device's own policy allows it to work now.

    ``tasks`` are those that it has examples for; empty if it takes part in any one task. ``holdings`` describe the
    examples for each of ``tasks``, or for that one task; empty if the device does not say.
    """

    snapshot: Snapshot
    tasks: Annotated[tuple[Name, ...], msgspec.Meta(max_length=MAX_TASKS)] = ()
    holdings: Annotated[tuple[Holding, ...], msgspec.Meta(max_length=MAX_TASKS)] = ()

    def holding_for(self, task: str) -> Holding | None:
        """The examples that the device has for ``task``; ``None`` if it has not said."""
        place = self.tasks.index(task) if task in self.tasks else 0
        return self.holdings[place] if place < len(self.holdings) else None


class Declined(_Message, frozen=True, tag="declined"):
    """The device does not take an offer, or gives it up."""

    task: Name
    round: Positive
    failure: Failure
    detail: Text = ""
    peak_memory_bytes: Count | None = None


class UpdateReady(_Message, frozen=True, tag="update-ready"):
    """An update is ready to be pulled. Sent again until a receipt for ``update_id`` arrives."""

    update_id: Digest
    task: Name
    round: Positive
    base_version: Digest
    update: BlobEntry
    report: TrainingReport


class ReleaseReport(_Message, frozen=True, tag="release-report"):
    """How a released model does on the device's own held-out examples; the answer to ``assignment``.

    Without ``standing``, ``healthy`` says whether it was confirmed or rolled back.
    """

    release: Positive
    task: Name
    healthy: bool
    detail: Text = ""
    samples: Count = 0
    accuracy: Share | None = None
    latency_ms: Annotated[float, msgspec.Meta(ge=0)] | None = None
    peak_memory_bytes: Count | None = None
    assignment: Count = 0
    standing: Standing | None = None


class Renew(_Message, frozen=True, tag="renew"):
    """``certificate`` expires soon; ``request`` asks for the next one, see :mod:`edge_sdk.protocol.identity`."""

    certificate: Der
    request: Der
    signature: Annotated[bytes, msgspec.Meta(max_length=128)]


# -- from the coordinator


class Announce(_Message, frozen=True, tag="announce"):
    """The coordinator is there (again), so outboxes should be sent now. Retained.

    ``session`` is drawn anew at each connection, and has no other meaning.
    """

    session: Count
    versions: Annotated[tuple[int, ...], msgspec.Meta(max_length=16)] = (VERSION,)


class Offer(_Message, frozen=True, tag="offer"):
    """Train this submodel in this round; ``manifest`` names everything needed by digest.

    Every step also trains the narrower prefixes ``nested``, widest first, so that they stay accurate by themselves. If
    the manifest has a training graph, the device trains on ONNX; if it has a configuration, on torch. ``labels`` are
    those of the logits, in order; empty if text is generated. The update comes back in ``encoding`` or in fp32.
    """

    task: Name
    round: Positive
    base_version: Digest
    architecture: Architecture
    submodel: Submodel
    part: TrainablePart
    labels: Annotated[tuple[Text, ...], msgspec.Meta(max_length=1000)]
    recipe: Recipe
    deadline_s: Seconds
    predicted_memory_bytes: Count
    manifest: Annotated[tuple[BlobEntry, ...], msgspec.Meta(max_length=16)]
    nested: Annotated[tuple[Submodel, ...], msgspec.Meta(max_length=4)] = ()
    encoding: Encoding = FP32


class Wait(_Message, frozen=True, tag="wait"):
    """There is nothing to do for this device now; it should ask again later."""

    retry_after_s: Seconds
    reason: Text = ""


class Receipt(_Message, frozen=True, tag="receipt"):
    """The verdict on an update, sent only after it is durable. The same id gets the same receipt again.

    Unless the update is accepted, ``reason`` begins with a :class:`Refusal`.
    """

    update_id: Digest
    verdict: Verdict
    reason: Text = ""

    @property
    def refusal(self) -> Refusal | None:
        """The refusal that ``reason`` begins with; ``None`` if it is not a known one."""
        word = self.reason.partition(":")[0]
        return Refusal(word) if word in {known.value for known in Refusal} else None


class Release(_Message, frozen=True, tag="release"):
    """Tells a device to run a model or to leave it, by envelopes of :mod:`edge_sdk.protocol.releases`' documents.

    ``envelope`` has the assignment, ``manifest`` its release, ``roots`` all roots of trust after the first, in order.
    """

    envelope: Annotated[bytes, msgspec.Meta(max_length=MAX_MESSAGE_BYTES // 2)]
    manifest: Annotated[bytes, msgspec.Meta(max_length=MAX_MESSAGE_BYTES // 2)] = b""
    roots: Annotated[tuple[bytes, ...], msgspec.Meta(max_length=MAX_ROOTS)] = ()


class Refused(_Message, frozen=True, tag="refused"):
    """The last message was not understood or not allowed."""

    reason: Text


class Renewed(_Message, frozen=True, tag="renewed"):
    """The device's new certificate (X.509)."""

    certificate: Der


# -- both ways


class ChunkRequest(_Message, frozen=True, tag="chunk-request"):
    """The receiver of a blob asks for the byte ranges [start, stop) that it lacks."""

    digest: Digest
    ranges: Annotated[tuple[tuple[Count, Count], ...], msgspec.Meta(max_length=256)]


class Chunk(_Message, frozen=True, tag="chunk"):
    """Whole grains of a blob from ``offset`` on, with the SHA-256 of ``data`` alone."""

    digest: Digest
    offset: Count
    data: Annotated[bytes, msgspec.Meta(max_length=MAX_CHUNK_BYTES)]
    data_digest: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]


class BlobGone(_Message, frozen=True, tag="blob-gone"):
    """The sender does not have a blob that it was asked for."""

    digest: Digest


BlobMessage = ChunkRequest | Chunk | BlobGone
DeviceMessage = Hello | Offline | Ready | Declined | UpdateReady | ReleaseReport | Renew | BlobMessage
CoordinatorMessage = Announce | Offer | Wait | Receipt | Release | Renewed | Refused | BlobMessage
Message = DeviceMessage | CoordinatorMessage

_encoder = msgspec.msgpack.Encoder()
_from_device: msgspec.msgpack.Decoder[DeviceMessage] = msgspec.msgpack.Decoder(DeviceMessage)
_from_coordinator: msgspec.msgpack.Decoder[CoordinatorMessage] = msgspec.msgpack.Decoder(CoordinatorMessage)


def encode(message: Message) -> bytes:
    """The message's bytes on the wire."""
    return _encoder.encode(message)


def type_of(message: Message) -> str:
    """The message's ``type`` on the wire."""
    return str(message.__struct_config__.tag)


def decode_from_device(payload: bytes) -> DeviceMessage:
    """Decode what a device sent; ``MalformedMessageError`` if it is too large or not one of a device's messages."""
    return _decode(_from_device, payload)


def decode_from_coordinator(payload: bytes) -> CoordinatorMessage:
    """Decode what a coordinator sent; ``MalformedMessageError`` if it is too large or not one of its messages."""
    return _decode(_from_coordinator, payload)


def _decode(decoder: msgspec.msgpack.Decoder[_M], payload: bytes) -> _M:
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise MalformedMessageError(f"message of {len(payload)} bytes exceeds the limit of {MAX_PAYLOAD_BYTES}")
    try:
        message = decoder.decode(payload)
    except UNDECODABLE as error:
        words = f"message of {len(payload)} bytes is not of the closed set: {brief(error)}"
        raise MalformedMessageError(words) from error
    if len(payload) > MAX_MESSAGE_BYTES and not isinstance(message, Chunk):
        name = type(message).__name__
        raise MalformedMessageError(f"{name} of {len(payload)} bytes exceeds the limit of {MAX_MESSAGE_BYTES}")
    return message
