"""``python -m tests.benchmarks NAME [OPTION ...]``: one benchmark, or ``all``; a table, then one line of JSON each."""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import pkgutil
import sys
from pathlib import Path

from tests.benchmarks._measure import Figure
from tests.benchmarks._results import record


def names() -> list[str]:
    """Every module beside this one that is not private."""
    found = (module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
    return sorted(name for name in found if not name.startswith("_"))


def main(arguments: list[str] | None = None) -> int:
    """0 where it ran, 2 where there is no such benchmark or option."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("name", help=f"all, or one of: {', '.join(names())}")
    parser.add_argument("--record", action="store_true", help="write the figure into tests/benchmarks/RESULTS.md")
    known, options = parser.parse_known_args(arguments)
    name = known.name
    if name not in {"all", *names()}:
        print(f"no benchmark {name!r}: use all, or one of {', '.join(names())}", file=sys.stderr)
        return 2
    for chosen in names() if name == "all" else [name]:
        figure = _run(chosen, options)
        print(json.dumps(figure.as_dict()), flush=True)
        if known.record:
            record(figure, options)
    return 0


def _run(name: str, options: list[str]) -> Figure:
    """Options go to a benchmark that has some: its ``run`` takes them."""
    module = importlib.import_module(f"tests.benchmarks.{name}")
    if options and not inspect.signature(module.run).parameters:
        print(f"benchmark {name} has no options: leave out {' '.join(options)}", file=sys.stderr)
        sys.exit(2)
    return module.run(options) if options else module.run()


if __name__ == "__main__":
    sys.exit(main())
