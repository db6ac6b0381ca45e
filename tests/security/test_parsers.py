"""S6: whatever bytes come, a parser returns or raises its one named error, soon and in little memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from random import Random

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.support.fuzzing import MOST_S, HarmError, apart, broken, check
from tests.support.memory import memory_folder
from tests.support.parsers import Parser, all_parsers
from tests.support.proof import Proof

FULL_COUNT, SHORT_COUNT = 10_000_000, 4_000
FULL_EXAMPLES = 1000
ATHERIS_SHARE, LEAST_GUIDED = 0.02, 500  # of all inputs: one of them costs several of the others
PATIENCE_S = 2400.0
BROKEN = "message of a device"
_NAMES = (
    *("message of a device", "message of the coordinator", "topic", "tensor file", "tensor file of a known table"),
    *("messages of a transfer", "flags of half a blob"),
    *("envelope", "signed root", "signed manifest", "signed assignment", "release as a device checks it"),
    *("trust that a device keeps", "root of trust", "signed release", "signing key", "public key"),
    *("answer to who enrols", "blob of a web server"),
    *("settings", "environment", "device profile", "broker address", "web address", "password file"),
    *("examples, csv", "examples, jsonl", "examples, npz", "examples, npz to the disk"),
    *("examples, parquet", "picture"),
    *("question, npy", "question, csv", "slot", "examples that were learnt", "split of examples"),
    *("checkpoint", "what earlier updates lost", "word of a training process", "tokenizer"),
    *("update in fp32", "update in fp16", "update in int8", "update in topk"),
    *("task, TOML", "task, JSON", "encoding", "backup", "token"),
)


@pytest.fixture(scope="module")
def parsers() -> Iterator[dict[str, Parser]]:
    with memory_folder() as folder:
        yield all_parsers(folder)


def test_every_parser_is_tried(parsers: dict[str, Parser]) -> None:
    assert tuple(parsers) == _NAMES


@pytest.mark.parametrize("name", _NAMES)
@pytest.mark.filterwarnings("ignore")  # a warning is no harm
def test_seeds_are_read_and_known_attacks_do_no_harm(parsers: dict[str, Parser], name: str) -> None:
    parser = parsers[name]
    for data in parser.seeds:
        parser.parse(data)
    for data in parser.attacks:
        check(parser, data)


def harmless(parser: Parser, *, most: int) -> None:
    """Raise :class:`HarmError` where an input that Hypothesis finds does harm: noise, or what is made of a seed."""

    @settings(max_examples=most, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.binary(max_size=300) | st.builds(parser.mutate, st.sampled_from(parser.seeds), random_numbers()))
    @example(b"")
    def is_harmless(data: bytes) -> None:
        check(parser, data)

    is_harmless()


def random_numbers() -> st.SearchStrategy[Random]:
    return st.integers(0, 2**64).map(Random)


@pytest.mark.case("S6", f"parsers that any of {FULL_EXAMPLES} inputs by Hypothesis harms")
@pytest.mark.parametrize("name", _NAMES)
@pytest.mark.filterwarnings("ignore")
def test_no_input_does_harm(parsers: dict[str, Parser], proof: Proof, name: str) -> None:
    harmless(parsers[name], most=proof.count(short=20 if parsers[name].weight < 5 else 30, full=FULL_EXAMPLES))


def test_hypothesis_finds_a_parser_that_is_broken(parsers: dict[str, Parser]) -> None:
    """The control."""
    with pytest.raises(HarmError, match="ZeroDivisionError: broken on purpose"):
        harmless(broken(parsers[BROKEN]), most=2000)


MODES = ["mutate", pytest.param("atheris", marks=pytest.mark.skipif(not find_spec("atheris"), reason="no atheris"))]


@pytest.mark.long
@pytest.mark.parametrize("mode", MODES)
def test_either_fuzzer_finds_a_parser_that_is_broken(proof: Proof, mode: str) -> None:
    """The control of the next."""
    seen = apart(mode, BROKEN, proof.seed, 100_000, patience_s=120.0, is_broken=True)
    assert seen.harm == "ZeroDivisionError: broken on purpose"
    assert seen.inputs < 100_000


@pytest.mark.long
@pytest.mark.xdist_group("ten million inputs")
@pytest.mark.timeout(2700)
def test_ten_million_inputs_do_no_harm(parsers: dict[str, Parser], proof: Proof) -> None:
    """Of each parser a share, in processes of their own; ``python -m tests.support.fuzzing`` replays one."""
    count = proof.count(short=SHORT_COUNT, full=FULL_COUNT)
    runs = list(shares(parsers if proof.is_full else {BROKEN: parsers[BROKEN]}, count))
    with ThreadPoolExecutor(max(1, (os.cpu_count() or 1) - 1)) as pool:
        found = [pool.submit(apart, *run[:2], proof.seed, run[2], patience_s=PATIENCE_S) for run in runs]
        seen = [each.result() for each in found]
    harmed = [each for each in seen if each.harm]
    inputs = sum(each.inputs for each in seen)
    print(f"{inputs} inputs, the slowest of them {max(seen, key=lambda each: each.slowest_s)}; harm: {harmed}")
    proof.show("S6", "parsers that any of 10 million inputs harmed", len(harmed), at_most=0)
    proof.show("S6", "inputs of these 10 million that were not tried", count - inputs, at_most=0)
    proof.show("S6", "processor seconds of the slowest of them", max(each.slowest_s for each in seen), at_most=MOST_S)


def shares(parsers: dict[str, Parser], count: int) -> Iterator[tuple[str, str, int]]:
    """Mode, parser and how many inputs; together at least ``count``."""
    whole = sum(max(1, parser.weight) for parser in parsers.values())
    by_atheris = ATHERIS_SHARE if find_spec("atheris") else 0.0
    for name, parser in parsers.items():
        own = -(-count * max(1, parser.weight) // whole)
        guided = min(own, max(int(own * by_atheris), LEAST_GUIDED)) if by_atheris else 0
        yield "mutate", name, own - guided
        if guided:
            yield "atheris", name, guided
