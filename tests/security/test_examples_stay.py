"""Examples never leave the device: not in a round, not in an error, not when they are asked for."""

from __future__ import annotations

import base64
import bz2
import gzip
import json
import logging
import lzma
import secrets
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edge_sdk.data.store import ExampleStore
from edge_sdk.errors import DataFormatError
from edge_sdk.protocol.blobs import digest_of
from edge_sdk.protocol.messages import (
    BlobGone,
    Chunk,
    ChunkRequest,
    Declined,
    Failure,
    ReleaseReport,
    UpdateReady,
    encode,
)
from edge_sdk.text import TextEncoder
from tests.support.canary import leaks
from tests.support.logistic_graph import LABELS, WORDS, tokenizer_json
from tests.support.lone_device import TASK, LoneDevice
from tests.support.proof import Proof


def canary() -> str:
    """Words that occur nowhere else, with letters and a quote that encodings write differently."""
    return f'kanarien-vögel "{secrets.token_hex(12)}"'


def mail(canaries: list[str]) -> list[tuple[str, str]]:
    """Each canary among words that the tokenizer knows."""
    words = np.random.default_rng(0).choice(WORDS[2:], (len(canaries), 12))
    return [
        (f"{' '.join(row)} {text}", LABELS[i % 2]) for i, (row, text) in enumerate(zip(words, canaries, strict=True))
    ]


def known_ids(examples: list[tuple[str, str]]) -> list[list[int]]:
    """The token ids of the first twelve words of each text."""
    return [row.tolist() for row in TextEncoder(tokenizer_json(), 12).encode([text for text, _ in examples])]


def kept_beside(state_dir: Path) -> list[bytes]:
    """What a device keeps that is no example: databases, and notes for its next start."""
    kept = [file for file in state_dir.rglob("*") if file.is_file() and file.suffix not in {".jsonl", ".npz"}]
    assert any(file.suffix == ".sqlite" for file in kept)
    return [file.read_bytes() for file in kept]


def test_whole_round_publishes_nothing_of_the_examples(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, proof: Proof
) -> None:
    caplog.set_level(logging.DEBUG)
    canaries = [canary() for _ in range(30)]
    examples, corrected = mail(canaries[:-1]), canaries[-1]
    with LoneDevice(tmp_path, examples) as device:
        device.supervisor.tasks.chosen(None).examples.learn((f"good {corrected}", "positive"))
        device.run_until(lambda: device.heard(ReleaseReport))
        for file in device.state_dir.glob("*.jsonl"):  # a coordinator gone bad asks for the files themselves
            device.send(ChunkRequest(digest=digest_of(file.read_bytes()), ranges=((0, 100),)))
        device.run_until(lambda: len(device.heard(BlobGone)) == 2)
    (report,) = device.heard(ReleaseReport)
    assert isinstance(report, ReleaseReport)
    assert report.healthy
    assert report.samples + device.heard(UpdateReady)[-1].report.samples == len(canaries)
    sent = leaks(device.hub.payloads, canaries, known_ids(examples))
    noted = leaks([caplog.text.encode(), *kept_beside(device.state_dir)], canaries)
    proof.show("S12", f"of {len(canaries)} examples, forms found in all that a round sends", len(sent), at_most=0)
    proof.show("S12", f"of {len(canaries)} examples, forms found in logs and databases", len(noted), at_most=0)
    kept = b"".join(file.read_bytes() for file in device.state_dir.glob("*.jsonl"))
    assert corrected in json.loads(kept.splitlines()[-1])["text"]  # it was there to be leaked


@pytest.mark.parametrize("releases_first", [False, True])
def test_wrong_label_is_told_by_its_row_on_the_device_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, releases_first: bool
) -> None:
    label = canary()
    examples = [(f"good film {number}", label) for number in range(20)]
    with caplog.at_level(logging.DEBUG), LoneDevice(tmp_path, examples, releases_first=releases_first) as device:
        device.run_until(lambda: device.heard(ReleaseReport if releases_first else Declined))
    if releases_first:
        (report,) = device.heard(ReleaseReport)
        assert (report.healthy, report.detail) == (False, "the held-out examples do not fit this model")
    else:
        declined = device.heard(Declined)[0]
        assert (declined.failure, declined.detail) == (Failure.EXAMPLES, "")
    assert "example 1 has another label than the task's, which are negative, positive" in caplog.text
    assert not leaks([caplog.text.encode(), *device.hub.payloads, *kept_beside(device.state_dir)], [label])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("no-header.csv", "{0},ham\n"),
        ("no-label.csv", "text,label\n{0}\n"),
        ("unknown.jsonl", '{{"{0}": "ham"}}\n'),
        ("empty.jsonl", '{{"text": "{0}", "label": ""}}\n'),
        ("later.jsonl", '{{"text": "a", "label": "b"}}\n{{"{0}": "ham"}}\n'),
        ("tags.jsonl", '{{"tokens": ["{0}"], "tags": ["O", "O"]}}\n'),
        ("broken.jsonl", '{{"text": "{0}\n'),
        ("picture.jsonl", '{{"image": "{0}", "label": "x"}}\n'),
        ("long-picture.jsonl", '{{"image": "{0}' + 300 * "x" + '", "label": "x"}}\n'),
    ],
)
def test_what_is_wrong_with_a_file_is_told_without_its_words(tmp_path: Path, name: str, content: str) -> None:
    secret = f"kanarien-{secrets.token_hex(12)}"
    path = tmp_path / name
    path.write_text(content.format(secret))
    with pytest.raises(DataFormatError, match=name) as refused:
        ExampleStore(path, tmp_path / "state", share=0.1, seed=0)
    assert secret not in str(refused.value)


def test_what_is_wrong_with_a_lesson_is_told_without_its_words(tmp_path: Path) -> None:
    store = ExampleStore([("good film", "positive")], tmp_path, share=0.1, seed=0)
    for lesson in ((canary(), 0.5), (canary(), canary(), canary()), ([canary()], [])):
        with pytest.raises(DataFormatError) as refused:
            store.learn(lesson)
        assert "kanarien" not in str(refused.value)


def as_chunks(data: bytes) -> list[bytes]:
    """A blob in two chunks, cut in the middle."""
    middle = len(data) // 2
    parts = {0: data[:middle], middle: data[middle:]}
    return [
        encode(Chunk(digest="a" * 64, offset=offset, data=part, data_digest=bytes(32)))
        for offset, part in reversed(parts.items())
    ]


@pytest.mark.parametrize(
    ("leak", "encoding"),
    [
        (lambda text: [encode(Declined(task=TASK, round=1, failure=Failure.TRAINING, detail=text))], "utf-8"),
        (lambda text: [json.dumps({"text": text}).encode()], "json"),
        (lambda text: [json.dumps({"text": text}, ensure_ascii=False).encode()], "json"),
        (lambda text: [text.encode("utf-16")], "utf-16-le"),
        (lambda text: [base64.b64encode(b"x" + text.encode() + b"yz")], "base64"),
        (lambda text: [text.encode().hex().encode()], "hex"),
        (lambda text: as_chunks(text.encode()), "utf-8"),
        (lambda text: as_chunks(b"before" + zlib.compress(text.encode()) + b"after"), "utf-8"),
        (lambda text: [b"before" + gzip.compress(text.encode())], "utf-8"),
        (lambda text: [bz2.compress(text.encode())], "utf-8"),
        (lambda text: [lzma.compress(text.encode())], "utf-8"),
    ],
)
def test_detector_finds_a_canary_that_is_sent(leak: Callable[[str], list[bytes]], encoding: str) -> None:
    """The control of the tests above."""
    sent = canary()
    assert encoding in leaks([b"noise", *leak(f"good film {sent} the end")], [canary(), sent])
    assert not leaks([b"noise", *leak("good film the end")], [sent])


@pytest.mark.parametrize("dtype", [np.int64, np.int32])
def test_detector_finds_token_ids(dtype: type[np.generic]) -> None:
    ids = known_ids(mail([canary()]))
    assert leaks([b"x" + np.array(ids[0]).astype(dtype).tobytes()], [], ids) == {"token ids"}
    assert not leaks([np.zeros(64, dtype=dtype).tobytes()], [], ids)
