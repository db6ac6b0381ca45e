"""Judges a history: what was handed in, what was receipted, and what became part of the model.

    python -m tests.support.checker FILE

It reads :mod:`tests.support.history`'s lines and imports nothing of the product, so that the code under test is not
its own judge. An update that was accepted is in the version of its round, once. Ends with 1 where that does not hold.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.support.history import Kind, Operation, operations


@dataclass(frozen=True)
class Judgement:
    """What is wrong, one entry each; ``open`` are updates that never got an answer, which is wrong in the end."""

    lost: tuple[str, ...] = ()
    double: tuple[str, ...] = ()
    strange: tuple[str, ...] = ()
    open: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether nothing is wrong."""
        return self == Judgement()


def judge(history: Iterable[Operation]) -> Judgement:
    """What a whole history shows."""
    found = list(history)
    handed_in = {it.update: it for it in found if it.what == "update" and it.kind is Kind.INVOKE}
    accepted = {it.update for it in found if it.what == "update" and it.kind is Kind.OK}
    answered = accepted | {it.update for it in found if it.what == "update" and it.kind is Kind.FAIL}
    made = [it for it in found if it.what == "aggregate" and it.kind is Kind.OK]
    versions = {it.round: it.digest for it in found if it.what == "version" and it.round > 0}
    parts = {it.round: it.updates for it in made if versions.get(it.round) == it.digest}
    counted = {update for updates in parts.values() for update in updates}
    return Judgement(
        lost=tuple(sorted(accepted - counted)),
        double=tuple(_double(parts, handed_in)),
        strange=(*_strange(parts, handed_in, versions), *_unstable(made)),
        open=tuple(sorted(handed_in.keys() - answered)),
    )


def _double(parts: dict[int, tuple[str, ...]], handed_in: dict[str, Operation]) -> Iterable[str]:
    """An update that counts more than once, and a second one of the same device in a round."""
    for update, times in Counter(update for updates in parts.values() for update in updates).items():
        if times > 1:
            yield f"{update[:16]} counts {times} times"
    for number, updates in parts.items():
        devices = Counter(handed_in[update].process for update in {*updates} & handed_in.keys())
        yield from (
            f"{device} counts {times} times in round {number}" for device, times in devices.items() if times > 1
        )


def _strange(
    parts: dict[int, tuple[str, ...]], handed_in: dict[str, Operation], versions: dict[int, str]
) -> Iterable[str]:
    """A version that nothing was seen to make, and an update that nobody made or that is another round's."""
    for number in versions.keys() - parts.keys():
        yield f"version {number} is {versions[number][:16]}, which no aggregation made"
    for number, updates in parts.items():
        for update in {*updates}:
            if update not in handed_in or handed_in[update].round != number:
                yield f"{update[:16]} counts in round {number}, where no device made it"


def _unstable(made: Iterable[Operation]) -> Iterable[str]:
    """The same updates, made into different bytes."""
    digests = defaultdict(set)
    for it in made:
        digests[it.round, it.updates].add(it.digest)
    return (f"round {number} came out in {len(them)} ways" for (number, _), them in digests.items() if len(them) > 1)


def main(path: str) -> int:
    """Print what is wrong; the exit code."""
    found = judge(operations(Path(path)))
    for what in ("lost", "double", "strange", "open"):
        for entry in getattr(found, what):
            print(f"{what}: {entry}")
    return 0 if found.holds else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
