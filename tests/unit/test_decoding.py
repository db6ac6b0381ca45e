"""What cannot be decoded is refused by the error of who reads it, however it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_sdk.data.log import ExampleLog
from edge_sdk.data.store import _read_past
from edge_sdk.decoding import MAX_TOML_BYTES, parse_toml
from edge_sdk.errors import BlobCorruptError, ConfigurationError, DataFormatError, StorageError, UntrustedError
from edge_sdk.inference.slots import Slots
from edge_sdk.protocol.blobs import digest_of
from edge_sdk.protocol.signing import Role, seal, sign, verify
from edge_sdk.security.secrets import read_secret
from edge_sdk.settings import from_environment
from edge_sdk.training.process import _parse
from tests.support.signed import keys_of

DEEP = b"[" * 30_000
NOT_TEXT = b'{"a": "\xff"}'


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"a = " + DEEP, "recursion depth|nested more than"),
        (b"a" + b".a" * 20_000 + b" = 1", "key of more than 30 parts"),
        (b"x = {a" + b' . "a b"' * 5_000 + b" = 1}", "key of more than 30 parts"),
        (b"a = " + b"9" * 5_000, "limit .*4300"),
        (b'a = "\xff"', "can't decode byte 0xff"),
        (b"a = 1\n" * 20_000, f"has at most {MAX_TOML_BYTES}"),
        (b"a = ", "Invalid value"),
    ],
    ids=["deep", "long key", "long key in a table", "long number", "no text", "long", "cut"],
)
def test_toml_that_is_none_or_a_bomb_is_refused(text: bytes, why: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^agent.toml .*({why})"):
        parse_toml(text, "agent.toml")


def test_toml_with_dots_in_it_is_read() -> None:
    comment = f"# {'.' * 100}\n# {'. ' * 100}\n# e.g. this, i.e. that. And so on.\n"
    assert parse_toml(f"{comment}a.b.c = '{'x' * 5000}'\nd = 1.5".encode(), "x") == {
        "a": {"b": {"c": "x" * 5000}},
        "d": 1.5,
    }


@pytest.mark.parametrize("damage", [b"\x91" * 30_000, b"\xa1\xff", b""])
def test_envelope_with_a_field_that_cannot_be_decoded_is_not_trusted(damage: bytes) -> None:
    key = Ed25519PrivateKey.generate()
    envelope = seal(Role.RELEASE, b"", sign(key, Role.RELEASE, b""))
    with pytest.raises(UntrustedError, match="cannot be read"):
        verify(bytes([envelope[0] + 1]) + envelope[1:] + b"\xa1z" + damage, Role.RELEASE, keys_of([key]))


@pytest.mark.parametrize("data", [DEEP, NOT_TEXT])
def test_damaged_files_of_a_device_are_refused_by_name(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a").mkdir()
    sealed = data + b"\n" + digest_of(data).encode()
    files = {"current": b"a", "a/slot.json": sealed, "learnt.jsonl": data + b"\n", "split.json": data}
    for name, text in files.items():
        (tmp_path / name).write_bytes(text)
    with pytest.raises(BlobCorruptError, match="cannot be read"):
        Slots(tmp_path).current()
    with pytest.raises(DataFormatError, match="row 1 is not a JSON object"):
        ExampleLog(tmp_path / "learnt.jsonl").read()
    with pytest.raises(StorageError, match="split is decided anew"):
        _read_past(tmp_path / "split.json")


@pytest.mark.parametrize("line", [DEEP, NOT_TEXT, b"\xff", b"a word of a library"])
def test_what_a_library_writes_is_no_word_of_the_training_process(line: bytes) -> None:
    assert _parse(line) is None


def test_password_file_that_is_no_text_is_refused_without_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "password").write_bytes(b"secret\xff")
    with pytest.raises(ConfigurationError, match=r"password is not text: write it again, in UTF-8$") as refused:
        read_secret(tmp_path / "password")
    assert refused.value.__cause__ is None


def test_variable_that_is_no_text_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match=r"^RAFFM_EDGE_SEED = "):
        from_environment({"RAFFM_EDGE_SEED": "7\udcff"})
