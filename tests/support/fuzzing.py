"""Inputs through a parser: it may raise only its named error, take a second, and need 64 MiB more.

    python -m tests.support.fuzzing mutate topic --seed 7 --count 1000      the same inputs again, and one by one
    python -m tests.support.fuzzing atheris topic --seed 7 --count 1000     libFuzzer's, which looks for new paths

Either ends at the first harm, and prints what it saw as one line of JSON.
"""

from __future__ import annotations

import argparse
import gc
import os
import resource
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, NoReturn

import msgspec

from edge_sdk.errors import BlobUnreachableError, CoordinatorUnreachableError, ProtocolError
from tests.support.memory import memory_folder

if TYPE_CHECKING:
    from tests.support.parsers import Parser

MORE_BYTES = 64 << 20
MOST_FILE_BYTES = 96 << 20
MOST_S = 1.0
OF_PEERS = (ProtocolError, BlobUnreachableError, CoordinatorUnreachableError)
"""What quotes others, who have no right to long words."""
_SHOWN, _LONGEST_TEXT = 300, 2000
_MOST_INPUT_BYTES = 16 * 1024
_MUTATED_SHARE = 0.5


class HarmError(Exception):
    """What an input has done to its parser."""


class Seen(msgspec.Struct):
    """Of a run: how many inputs, what the slowest took, and the first harm and its input, where there was any."""

    parser: str
    inputs: int = 0
    slowest_s: float = 0.0
    harm: str = ""
    harmful: str = ""

    def note(self, parser: Parser, data: bytes) -> bool:
        """Have an input parsed; whether that did no harm."""
        self.inputs += 1
        try:
            self.slowest_s = max(self.slowest_s, seconds_of(parser, data))
        except HarmError as harm:
            self.harm, self.harmful = str(harm), data[:_SHOWN].hex()
        return not self.harm


def check(parser: Parser, data: bytes) -> None:
    """:class:`HarmError` where an input does anything but be read or refused, within the limits."""
    with limited():
        seconds_of(parser, data)


def seconds_of(parser: Parser, data: bytes) -> float:
    """The processor seconds that an input takes this thread; :class:`HarmError` if too many, or by another error."""
    gc.disable()  # a collection goes through all that other tests have left in this process: a second, once
    began_s = time.thread_time()
    try:
        parser.parse(data)
    except parser.refuses as refused:
        is_long = isinstance(refused, OF_PEERS) and len(str(refused)) > _LONGEST_TEXT
        if is_long or len(str(refused).splitlines()) > 1:
            raise HarmError(f"{type(refused).__name__} of more than a line: {str(refused)[:_SHOWN]}") from refused
    except BaseException as error:
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        raise HarmError(f"{type(error).__name__}: {str(error)[:_SHOWN]}") from error
    finally:
        gc.enable()
    took_s = time.thread_time() - began_s
    if took_s > MOST_S:
        raise HarmError(f"it took {took_s:.1f} s of the processor")
    return took_s


@contextmanager
def limited() -> Iterator[None]:
    """Neither this process's memory nor a file may grow beyond what is promised."""
    has_bytes = int(Path("/proc/self/statm").read_bytes().split()[0]) * resource.getpagesize()
    wanted = {resource.RLIMIT_AS: has_bytes + MORE_BYTES, resource.RLIMIT_FSIZE: MOST_FILE_BYTES}
    before = {limit: resource.getrlimit(limit) for limit in wanted}
    for limit, most in wanted.items():
        resource.setrlimit(limit, (most, before[limit][1]))
    try:
        yield
    finally:
        for limit, both in before.items():
            resource.setrlimit(limit, both)


def broken(parser: Parser) -> Parser:
    """The control: it fails at a few inputs of many, by an error that is not its own."""

    def parse(data: bytes) -> object:
        if b"\x91" in data and len(data) % 7 == 0:
            raise ZeroDivisionError("broken on purpose")
        return parser.parse(data)

    return replace(parser, parse=parse)


def apart(mode: str, parser: str, seed: int, count: int, *, patience_s: float, is_broken: bool = False) -> Seen:
    """A run in a process of its own, which may crash or hang: then that is the harm."""
    command = [sys.executable, "-m", "tests.support.fuzzing", mode, parser, "--seed", str(seed), "--count", str(count)]
    command += ["--broken"] if is_broken else []
    try:
        done = subprocess.run(command, capture_output=True, timeout=patience_s, check=False)
    except subprocess.TimeoutExpired:
        return Seen(parser, harm=f"no end within {patience_s:.0f} s")
    lines = [line for line in done.stdout.splitlines() if line.startswith(b"{")]
    if done.returncode not in {0, 1} or not lines:
        return Seen(parser, harm=f"it ended with {done.returncode}: {done.stderr[-_SHOWN:].decode(errors='replace')}")
    return msgspec.json.decode(lines[-1], type=Seen)


def main() -> int:
    """See the module."""
    options = _options()
    warnings.simplefilter("ignore")  # a warning is no harm
    with memory_folder() as folder:
        if options.mode == "atheris":
            _fuzz(options, folder)
        parser = _parser(options, folder)
        numbers = [options.number] if options.number is not None else range(options.count)
        with limited():
            return _told(_mutate(parser, (parser.input_of(options.seed, number) for number in numbers)))


def _mutate(parser: Parser, inputs: Iterable[bytes]) -> Seen:
    seen = Seen(parser.name)
    for data in inputs:
        if not seen.note(parser, data):
            break
    return seen


def _fuzz(options: argparse.Namespace, folder: Path) -> NoReturn:
    """With what is imported from here on instrumented. libFuzzer never returns, so this ends the process."""
    import atheris

    with atheris.instrument_imports(include=["edge_sdk", "coordinator"]):
        parser = _parser(options, folder)
    seen, corpus = Seen(parser.name), folder / "corpus"
    corpus.mkdir()
    for number, data in enumerate((*parser.seeds, *parser.attacks)):
        (corpus / str(number)).write_bytes(data[:_MOST_INPUT_BYTES])

    def one_input(data: bytes) -> None:
        if not seen.note(parser, data) or seen.inputs == options.count:
            shutil.rmtree(folder, ignore_errors=True)
            os._exit(_told(seen))

    def mutated(data: bytes, most: int, seed: int) -> bytes:
        chance = Random(seed)
        if chance.random() < _MUTATED_SHARE:
            return parser.mutate(data, chance)[:most]
        return bytes(atheris.Mutate(data, most))

    own = [f"-seed={options.seed + 1}", f"-max_len={_MOST_INPUT_BYTES}", f"-artifact_prefix={folder}/"]
    own += ["-rss_limit_mb=0", "-verbosity=0"]
    atheris.Setup(["fuzzing", *own, str(corpus)], one_input, custom_mutator=mutated)
    with limited():
        atheris.Fuzz()
    raise AssertionError("libFuzzer has ended by itself")


def _parser(options: argparse.Namespace, folder: Path) -> Parser:
    """What it sets up at its first calls for good, threads say, is none of its inputs'."""
    from tests.support.parsers import parser_called

    parser = parser_called(options.parser, folder)
    for data in parser.seeds:
        parser.parse(data)
    return broken(parser) if options.broken else parser


def _told(seen: Seen) -> int:
    sys.stdout.write(msgspec.json.encode(seen).decode() + "\n")
    sys.stdout.flush()
    return 1 if seen.harm else 0


def _options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("mode", choices=["mutate", "atheris"])
    options.add_argument("parser")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--count", type=int, default=1000)
    options.add_argument("--number", type=int, help="only this input of the run")
    options.add_argument("--broken", action="store_true", help="the control")
    return options.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
